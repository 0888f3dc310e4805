# SPDX-License-Identifier: Apache-2.0
"""The list of an endpoint's revisions: which edits retry a failed one, and what an entry keeps."""

from datetime import timedelta

import pytest

from finetune_operator.api.inference_deployment import (
    MAX_REVISIONS,
    InferenceDeployment,
    InferenceDeploymentSpec,
    RevisionStatus,
)
from finetune_operator.api.rollout_strategy import Strategy
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import (
    spec_hash,
    with_entry,
    with_weights,
)
from tests.unit.operator.endpoints import NOW, endpoint


class LaterStrategy(Strategy):
    """Strategy with a field of a later release."""

    steps: int | None = None


class LaterSpec(InferenceDeploymentSpec):
    """Spec with fields of a later release."""

    strategy: LaterStrategy = LaterStrategy()
    region: str | None = None


class LaterEndpoint(InferenceDeployment):
    """The endpoint as a later release parses it."""

    spec: LaterSpec


def later() -> LaterEndpoint:
    return LaterEndpoint.model_validate(endpoint().to_dict())


def test_an_upgrade_is_no_edit_and_every_set_field_is_one() -> None:
    assert spec_hash(later()) == spec_hash(endpoint())
    edited = later().model_copy(update={"spec": later().spec.model_copy(update={"region": "north"})})
    assert spec_hash(edited) != spec_hash(endpoint())
    stepping = later().spec.model_copy(update={"strategy": LaterStrategy(steps=3)})
    assert spec_hash(later().model_copy(update={"spec": stepping})) != spec_hash(endpoint())


@pytest.mark.parametrize(
    ("spec", "recorded"),
    [
        ({}, "0d524f840590011c"),
        ({"serving": {"contextLength": 512}, "availability": {"maxUnavailable": 1}}, "374638de5bf3f6c8"),
        (
            {
                "replicas": 5,
                "strategy": {
                    "type": "Canary",
                    "canary": {"steps": [{"setWeight": 20}, {"pause": {"seconds": 60}}]},
                    "bakeSeconds": 60,
                    "analysis": {"gates": [{"metric": "error_rate", "max": 0.05}]},
                },
            },
            "43f64dc17d7832ae",
        ),
    ],
    ids=["minimal", "serving", "canary"],
)
def test_hashes_of_specs_stay_as_recorded(spec: Manifest, recorded: str) -> None:
    assert spec_hash(endpoint(**spec)) == recorded


@pytest.mark.parametrize("spec", [{"serving": {}}, {"strategy": {"type": "RollingUpdate", "paused": True}}])
def test_a_setting_that_chooses_nothing_is_no_edit(spec: Manifest) -> None:
    assert spec_hash(endpoint(**spec)) == spec_hash(endpoint())


def test_a_pause_without_end_is_an_edit() -> None:
    steps: list[Manifest] = [{"setWeight": 20}, {"pause": {}}]
    pausing, passing = ({"type": "Canary", "canary": {"steps": part}} for part in (steps, steps[:1]))
    assert spec_hash(endpoint(strategy=pausing)) != spec_hash(endpoint(strategy=passing))


def test_scaling_is_no_edit() -> None:
    assert spec_hash(endpoint(replicas=3)) == spec_hash(endpoint())
    assert spec_hash(endpoint(strategy={"progressDeadlineSeconds": 60})) != spec_hash(endpoint())


def test_an_entry_keeps_its_time_until_its_state_step_or_spec_changes() -> None:
    one = RevisionStatus(name="one", state="RollingOut", spec_hash="a")
    before = with_entry((), one, NOW)
    after = NOW + timedelta(seconds=9)
    assert with_entry(before, one.model_copy(update={"message": "other words"}), after) == before
    for change in ({"state": "Live"}, {"step": 1}, {"spec_hash": "b"}):
        (entry,) = with_entry(before, one.model_copy(update=change), after)
        assert entry.since == after.replace(microsecond=0)


def test_an_entry_has_the_time_at_which_its_last_rollout_began() -> None:
    states = (
        ("RollingOut", 0),
        ("WaitingForCapacity", 0),
        ("Canary", 0),
        ("Baking", 0),
        ("Live", 0),
        ("Retired", 0),
        ("RollingOut", 6),
        ("Failed", 6),
        ("RollingOut", 8),
        ("Live", 8),
        ("RollingOut", 10),
    )
    revisions: tuple[RevisionStatus, ...] = ()
    for hours, (state, started) in enumerate(states):
        entry = RevisionStatus.model_validate({"name": "one", "state": state})
        revisions = with_entry(revisions, entry, NOW + timedelta(hours=hours))
        assert revisions[0].started_at == (NOW + timedelta(hours=started)).replace(microsecond=0), state


def test_the_newest_entries_are_kept() -> None:
    revisions: tuple[RevisionStatus, ...] = ()
    for number in range(MAX_REVISIONS + 2):
        revisions = with_entry(revisions, RevisionStatus(name=f"r{number}", state="Retired"), NOW)
    assert [entry.name for entry in revisions] == [f"r{number}" for number in range(MAX_REVISIONS + 1, 1, -1)]


def test_every_entry_has_a_weight() -> None:
    revisions = tuple(RevisionStatus(name=name, state="Live") for name in ("one", "two", "three"))
    weighed = with_weights(revisions, {"one": 90, "two": 10})
    assert [entry.weight for entry in weighed] == [90, 10, 0]
    assert with_weights(weighed, {"one": 90, "two": 10}) == weighed


def test_the_serving_revision_stays_in_a_list_of_failed_ones() -> None:
    revisions: tuple[RevisionStatus, ...] = (RevisionStatus(name="serving", state="Live", weight=100),)
    for number in range(MAX_REVISIONS + 2):
        revisions = with_entry(revisions, RevisionStatus(name=f"r{number}", state="Failed"), NOW)
    assert len(revisions) == MAX_REVISIONS
    assert revisions[-1].name == "serving"
