# SPDX-License-Identifier: Apache-2.0
"""Immutable and mutable fields of records and runs."""

import pytest

from finetune_operator.api.crd import KINDS_BY_NAME, Kind
from tests.integration.api import Api, Object
from tests.integration.rules import files
from tests.integration.rules.requests import try_patch
from tests.integration.rules.schema import spec_schema
from tests.mergepatch import merged

MUTABLE = {
    "FineTuneJob": {"suspend", "cancel", "childrenTTLSeconds"},
    "DatasetVersion": {"deletionPolicy"},
    "Checkpoint": {"approval", "deletionPolicy"},
    "Evaluation": {"suspend", "childrenTTLSeconds"},
    "FineTuneSweep": {"maxTrials", "parallelTrials", "maxFailedTrials", "maxDeviceHours", "cancel"},
}
ADVICE = {
    "FineTuneJob": "a run is a record: create a new FineTuneJob (…-v2)",
    "DatasetVersion": "a DatasetVersion is a record of content: change the Dataset to create a new version",
    "Checkpoint": "a Checkpoint is a record of weights: train again to create a new one",
    "Evaluation": "an Evaluation is a record: create another one with another name",
    "FineTuneSweep": "a sweep is a record: create a new FineTuneSweep with another name",
}
FIELDS = [
    (KINDS_BY_NAME[name], field, field in mutable)
    for name, mutable in MUTABLE.items()
    for field in spec_schema(KINDS_BY_NAME[name])["properties"]
]
IMMUTABLE = [pytest.param(kind, field, id=f"{kind.name}.{field}") for kind, field, free in FIELDS if not free]
FREE = [pytest.param(kind, field, id=f"{kind.name}.{field}") for kind, field, free in FIELDS if free]
INSIDE = [
    ("dataset", {"ref": {"version": "tickets-1a2b3c4d5e6f"}}),
    ("hyperparameters", {"seed": 1}),
    ("hyperparameters", {"epochs": None}),
    ("baseModel", {"champion": {}}),
    ("compute", {"profile": "a100"}),
    ("method", {"lora": {"r": 8}}),
    ("evaluation", {"gates": []}),
    ("evaluation", {"profile": "cpu"}),
]


@pytest.fixture(scope="module")
def with_every_field(api: Api) -> dict[str, Object]:
    """A stored object of each kind with the first value of each field."""
    return {name: api.create(_example(KINDS_BY_NAME[name], every_field=True)) for name in MUTABLE}


@pytest.fixture(scope="module")
def with_required_fields(api: Api) -> dict[str, Object]:
    """A stored object of each kind without optional fields."""
    return {name: api.create(_example(KINDS_BY_NAME[name], every_field=False)) for name in MUTABLE}


@pytest.mark.parametrize("name", MUTABLE)
def test_every_field_has_two_example_values(name: str) -> None:
    properties = spec_schema(KINDS_BY_NAME[name])["properties"]
    given = files.changes(KINDS_BY_NAME[name])
    assert set(given) == set(properties), f"complete tests/integration/rules/{name.lower()}/changes.yaml"
    for field, change in given.items():
        assert change.first != change.other
        assert change.first != properties[field].get("default"), f"{field}: removing it would change nothing"


@pytest.mark.parametrize(("kind", "field"), IMMUTABLE)
def test_an_immutable_field_cannot_change(
    api: Api, with_every_field: dict[str, Object], kind: Kind, field: str
) -> None:
    other = files.changes(kind)[field].other
    _refused(api, with_every_field[kind.name], field, other)


@pytest.mark.parametrize(("kind", "field"), IMMUTABLE)
def test_an_immutable_field_cannot_be_removed_and_then_added_with_another_value(
    api: Api, with_every_field: dict[str, Object], kind: Kind, field: str
) -> None:
    stored = with_every_field[kind.name]
    _refused(api, stored, field, None)
    _refused(api, stored, field, files.changes(kind)[field].other)
    metadata = stored["metadata"]
    assert api.get(kind.name, metadata["namespace"], metadata["name"]) == stored


@pytest.mark.parametrize(("kind", "field"), IMMUTABLE)
def test_an_immutable_field_that_was_left_out_cannot_be_added_later(
    api: Api, with_required_fields: dict[str, Object], kind: Kind, field: str
) -> None:
    required = files.minimal(kind)["spec"]
    assert required.keys() >= set(spec_schema(kind)["required"])
    if field in required:
        return
    change = files.changes(kind)[field]
    _refused(api, with_required_fields[kind.name], field, change.first)


@pytest.mark.parametrize(("field", "patch"), INSIDE, ids=str)
def test_what_lies_inside_an_immutable_field_cannot_change(
    api: Api, with_every_field: dict[str, Object], field: str, patch: Object
) -> None:
    _refused(api, with_every_field["FineTuneJob"], field, patch)


def test_the_time_that_a_run_may_use_can_change_go_and_come_back(
    api: Api, with_every_field: dict[str, Object], with_required_fields: dict[str, Object]
) -> None:
    for stored in (with_every_field["FineTuneJob"], with_required_fields["FineTuneJob"]):
        for seconds in (600, 1200, None, 60):
            verdict = try_patch(api, stored, {"spec": {"compute": {"maxRunSeconds": seconds}}})
            assert verdict.accepted, verdict.message
    _refused(api, with_every_field["FineTuneJob"], "compute", {"maxRunSeconds": 60, "devices": 8})


@pytest.mark.parametrize(("kind", "field"), FREE)
def test_a_mutable_field_can_change_go_and_come_back(
    api: Api, with_required_fields: dict[str, Object], kind: Kind, field: str
) -> None:
    change = files.changes(kind)[field]
    for value in (change.first, change.other, None, change.other):
        verdict = try_patch(api, with_required_fields[kind.name], {"spec": {field: value}})
        assert verdict.accepted, verdict.message


@pytest.mark.parametrize("name", MUTABLE)
def test_labels_and_status_of_a_record_can_change(
    api: Api, with_every_field: dict[str, Object], name: str
) -> None:
    stored = with_every_field[name]
    labelled = try_patch(api, stored, {"metadata": {"labels": {"team": "support"}}}, store=False)
    assert labelled.accepted, labelled.message
    status: Object = {"status": {"observedGeneration": 1, "conditions": [_condition()]}}
    observed = try_patch(api, stored, status, subresource="status", store=False)
    assert observed.accepted, observed.message
    assert observed.obj["status"]["observedGeneration"] == 1


def _refused(api: Api, stored: Object, field: str, value: object) -> None:
    verdict = try_patch(api, stored, {"spec": {field: value}})
    assert verdict.status == 422
    if value is None and field in spec_schema(KINDS_BY_NAME[stored["kind"]])["required"]:
        assert "Required value" in verdict.messages_of(f"spec.{field}")
        return
    said = f"{field} is immutable: {ADVICE[stored['kind']]}"
    assert any(said in message for message in verdict.messages_of(f"spec.{field}")), verdict.message


def _example(kind: Kind, *, every_field: bool) -> Object:
    spec = {name: change.first for name, change in files.changes(kind).items()}
    name = {"metadata": {"name": f"immutable-{'every' if every_field else 'required'}"}}
    example: Object = merged(files.minimal(kind), name | ({"spec": spec} if every_field else {}))
    return example


def _condition() -> Object:
    return {
        "type": "Ready",
        "status": "True",
        "reason": "Done",
        "message": "Done.",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
