"""What a Checkpoint and a DatasetVersion say about wishes that this release does not act on."""

import pytest

from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, VERSION, evaluated
from tests.unit.operator.runsteps import reached

RECORDS = [("Checkpoint", CHECKPOINT, "Promoted"), ("DatasetVersion", VERSION, "Available")]


def promoted() -> MemoryCluster:
    cluster = reached("evaluate")
    cluster.succeed("evaluate", evaluated(), after=10)
    cluster.settle()
    return cluster


@pytest.mark.parametrize(("kind", "name", "domain"), RECORDS)
def test_a_deletion_policy_that_nothing_acts_on_stalls_the_record_and_leaves_the_rest_as_it_is(
    kind: str, name: str, domain: str
) -> None:
    cluster = promoted()
    assert "Stalled" not in cluster.states(kind, name)
    cluster.change(kind, name, deletionPolicy="Delete")
    cluster.settle()
    assert cluster.states(kind, name) == {"Stalled": "NotImplemented", domain: domain}
    stalled = cluster.condition(kind, name, "Stalled")
    assert stalled is not None
    assert stalled["message"] == (
        "spec.deletionPolicy: Delete is not implemented in this release; use Retain"
    )
    cluster.change(kind, name, deletionPolicy="Retain")
    cluster.settle()
    assert cluster.states(kind, name) == {domain: domain}


def test_a_stalled_checkpoint_is_promoted_all_the_same() -> None:
    cluster = reached("evaluate")
    cluster.change("Checkpoint", CHECKPOINT, deletionPolicy="Delete")
    cluster.succeed("evaluate", evaluated(), after=10)
    cluster.settle()
    assert cluster.states("Checkpoint", CHECKPOINT) == {"Stalled": "NotImplemented", "Promoted": "Promoted"}
