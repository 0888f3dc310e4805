# SPDX-License-Identifier: Apache-2.0
"""Fields and values of a newer release are read and kept."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, get_args, get_origin

import pytest

from finetune_operator.api.crd import KINDS
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.finetune_job_status import FineTuneJobStatus
from finetune_operator.api.meta import Model, find_identity, keep_unknown
from finetune_operator.engine.store import ObjectStore
from finetune_operator.runtime.snapshots import Models
from finetune_operator.status.conditions import status_manifest
from tests.unit.operator.runobjects import JOB
from tests.unit.operator.runsteps import ended


def finished() -> dict[str, Any]:
    """A FineTuneJob with every field of a status."""
    manifest: dict[str, Any] = deepcopy(ended().objects["FineTuneJob", JOB])
    manifest["metadata"]["resourceVersion"] = "7"
    return manifest


def newer() -> dict[str, Any]:
    """The same, as a later release wrote it."""
    manifest = finished()
    status = manifest["status"]
    status["news"] = {"a": [1]}
    status["resolved"]["rank"] = 8
    status["resolved"]["hyperparameters"]["packing"] = True
    status["checkpoints"][0]["size"] = "3Mi"
    status["conditions"][0]["severity"] = "Info"
    return manifest


def test_unknown_fields_stay_when_the_status_is_written_again() -> None:
    live = newer()["status"]
    written = status_manifest(FineTuneJob.model_validate(newer()).status)
    assert "news" not in written

    assert keep_unknown(FineTuneJobStatus, live, written) == live


def test_what_is_left_out_by_intent_does_not_come_back() -> None:
    live = newer()["status"]
    model = FineTuneJob.model_validate(newer()).status
    written = status_manifest(model.model_copy(update={"evaluation": None, "checkpoints": ()}))

    kept = keep_unknown(FineTuneJobStatus, live, written)

    assert "evaluation" not in kept
    assert "checkpoints" not in kept
    assert kept["news"] == {"a": [1]}


def test_a_part_without_known_fields_keeps_the_unknown_ones() -> None:
    assert keep_unknown(FineTuneJobStatus, {"resolved": {"rank": 8}}, {"phase": "x"}) == {
        "phase": "x",
        "resolved": {"rank": 8},
    }


def test_a_status_without_unknown_fields_is_written_as_it_is() -> None:
    live = finished()["status"]
    assert keep_unknown(FineTuneJobStatus, live, {"phase": "x"}) == {"phase": "x"}
    assert keep_unknown(FineTuneJobStatus, live, live) == live


def read(manifest: dict[str, Any], model: type[Any] = FineTuneJob) -> tuple[Any, tuple[str, ...]]:
    store = ObjectStore()
    store.put(manifest)
    models = Models(store, model)
    metadata = manifest["metadata"]
    found = store.get(metadata.get("namespace", ""), metadata["name"])
    assert found is not None
    return models.parse(found), models.unknown(found)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "deletionPolicy"), "Archive"),
        (("status", "evaluation", "scores", 0, "metric"), "BLEU-4"),
        (("status", "checkpoints", 0, "name"), "x" * 70),
        (("status", "evaluation", "verdict"), "Postponed"),
    ],
)
def test_values_of_a_newer_release_are_data(path: tuple[Any, ...], value: Any) -> None:
    manifest = finished()
    part = manifest
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value

    model, unknown = read(manifest)

    assert model is not None
    assert unknown == (".".join(map(str, path)),)
    assert status_manifest(model.status) == manifest["status"]


def test_longer_lists_are_data() -> None:
    manifest = finished()
    manifest["status"]["checkpoints"] *= 20
    model, _ = read(manifest)
    assert len(model.status.checkpoints) == 20


def test_another_json_type_is_not_read() -> None:
    manifest = finished()
    manifest["spec"]["modelLine"] = {"name": "m"}
    assert read(manifest)[0] is None


def test_an_object_of_this_release_has_nothing_unknown() -> None:
    assert read(finished())[1] == ()


MEASURED = {
    "EvaluationStatus",
    "Score",
    "GateResult",
    "CheckFinding",
    "LearningCurvePoint",
    "AnalysisFigureStatus",
    "ResultStore",
    "CheckedSource",
    "SourceDifference",
}
"""Items that are replaced as a whole by a new measurement or check."""


def items_in(model: type[Model]) -> Iterator[type[Model]]:
    """The models of all lists of a status."""
    for field in model.model_fields.values():
        for part, is_item in parts_of(field.annotation):
            if is_item:
                yield part
            yield from items_in(part)


def parts_of(annotation: Any, is_item: bool = False) -> Iterator[tuple[type[Model], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation, is_item
    for argument in get_args(annotation):
        yield from parts_of(argument, is_item or get_origin(annotation) is tuple)


def test_the_items_of_each_list_have_an_identity() -> None:
    items = {
        item.__name__: find_identity(item)
        for kind in KINDS
        for status, _ in parts_of(kind.model.model_fields["status"].annotation)
        for item in items_in(status)
    }
    assert {name for name, identity in items.items() if not identity} == MEASURED
    assert items["EndedPod"] == ("pod",)
    assert items["UnmeasuredCheckpoint"] == ("checkpoint", "reason")


def test_unknown_fields_of_device_time_and_advice_stay() -> None:
    live: dict[str, Any] = {
        "usage": {
            "name": "train",
            "until": "2030-01-02T03:00:00Z",
            "ended": [
                {"pod": uid, "at": "2030-01-02T03:00:00Z", "cause": "Failure", "node": f"node-{uid}"}
                for uid in "ab"
            ],
        },
        "cost": {"lost": [{"cause": "Failure", "deviceSeconds": 3, "energy": 7}]},
        "advice": [{"reason": "SmallerProfile", "message": "m", "saves": 4}],
    }
    written = deepcopy(live)
    for item in (*written["usage"]["ended"], written["cost"]["lost"][0], written["advice"][0]):
        for key in ("node", "energy", "saves"):
            item.pop(key, None)
    assert keep_unknown(FineTuneJobStatus, live, written) == live
