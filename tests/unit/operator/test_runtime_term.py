# SPDX-License-Identifier: Apache-2.0
"""The beginning of a term: what is reconciled before the lists on which passes base their decisions."""

from collections.abc import Callable

import pytest

from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.indexes import key_of
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.leader_term import FirstLists
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, DATASET, JOB, VERSION
from tests.unit.operator.runsteps import ended, reached, started


def terminating(manifest: Manifest) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "deletionTimestamp": "2030-01-02T00:00:00Z"}}


def continued(manifest: Manifest) -> Manifest:
    return {**manifest, "spec": {**manifest["spec"], "baseModel": {"checkpoint": "parent"}}}


def from_champion(manifest: Manifest) -> Manifest:
    return {
        **manifest,
        "spec": {**manifest["spec"], "baseModel": {"champion": {}, "uri": "pvc://models/gemma"}},
    }


def as_it_is(manifest: Manifest) -> Manifest:
    return manifest


@pytest.mark.parametrize(
    ("cluster", "kind", "name", "change", "allowed"),
    [
        pytest.param(started, "FineTuneJob", JOB, as_it_is, True, id="run before its first Checkpoint"),
        pytest.param(started, "FineTuneJob", JOB, terminating, False, id="run that is being deleted"),
        pytest.param(
            started, "FineTuneJob", JOB, continued, False, id="run that continues from a Checkpoint"
        ),
        pytest.param(
            started, "FineTuneJob", JOB, from_champion, False, id="run that continues from a champion"
        ),
        pytest.param(lambda: reached("evaluate"), "FineTuneJob", JOB, as_it_is, False, id="trained run"),
        pytest.param(ended, "FineTuneJob", JOB, as_it_is, False, id="ended run"),
        pytest.param(started, "Dataset", DATASET, as_it_is, True, id="Dataset"),
        pytest.param(started, "Dataset", DATASET, terminating, False, id="Dataset that is being deleted"),
        pytest.param(started, "ComputeProfile", "cpu", as_it_is, True, id="ComputeProfile"),
        pytest.param(ended, "Checkpoint", CHECKPOINT, as_it_is, False, id="Checkpoint"),
        pytest.param(ended, "DatasetVersion", VERSION, as_it_is, False, id="DatasetVersion"),
    ],
)
def test_what_needs_no_list_of_records_and_endpoints_is_reconciled_before_them(
    cluster: Callable[[], MemoryCluster],
    kind: str,
    name: str,
    change: Callable[[Manifest], Manifest],
    *,
    allowed: bool,
) -> None:
    manifest = change(cluster().objects[kind, name])
    caches = Caches()
    caches.kinds[kind].put({**manifest, "metadata": {**manifest["metadata"], "resourceVersion": "1"}})
    lists = FirstLists(caches)
    assert lists.allow(key_of(manifest)) == allowed
    lists.are_complete = True
    assert lists.allow(key_of(manifest))
