# SPDX-License-Identifier: Apache-2.0
"""Objects created in this term need no GET before their children are created; all others do."""

from typing import Any, cast

import pytest

from finetune_operator.engine.client import KubernetesClient
from finetune_operator.engine.errors import Gone
from finetune_operator.engine.executor import EventRecorder, Executor, Stamp
from finetune_operator.engine.resources import JOB, POD, ResourceType, ResourceTypes
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Create, Manifest, Plan

BEGIN = 100


class Empty:
    """A fake cluster without objects, which accepts creates."""

    types = ResourceTypes()

    def __init__(self) -> None:
        self.read: list[str] = []
        self.created: list[str] = []

    async def newest(self, _type: ResourceType, _namespace: str) -> int:
        return BEGIN

    async def get(self, _type: ResourceType, _namespace: str, name: str) -> None:
        self.read.append(name)

    async def create(self, manifest: Manifest) -> Manifest:
        self.created.append(manifest["metadata"]["name"])
        return {**manifest, "metadata": {**manifest["metadata"], "uid": "job", "resourceVersion": "200"}}


def owner(version: int, **more: Any) -> Manifest:
    metadata = {"name": "owner", "namespace": "team", "uid": "owner", "resourceVersion": str(version)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, **more}


PLAN = Plan(
    create=(
        Create({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job", "namespace": "team"}}),
    )
)


async def after_a_term_began() -> tuple[Empty, Executor]:
    empty = Empty()
    cluster = cast("KubernetesClient", empty)
    stores = {POD: ObjectStore(), JOB: ObjectStore()}
    executor = Executor(
        cluster,
        stores,
        EventRecorder(cluster, "test", "0"),
        Stamp("x"),
        confirm_absent_before_create=lambda _: False,
    )
    await executor.begin_term([POD])
    return empty, executor


async def test_an_object_of_this_term_that_was_never_observed_is_not_read_again() -> None:
    cluster, executor = await after_a_term_began()
    await executor.carry_out(owner(BEGIN + 1, status={"observedGeneration": -1}), PLAN)
    assert (cluster.read, cluster.created) == ([], ["job"])


@pytest.mark.parametrize(
    "primary",
    [
        pytest.param(owner(BEGIN, status={"observedGeneration": -1}), id="from before the term"),
        pytest.param(owner(BEGIN + 1, status={"observedGeneration": 1}), id="looked at before"),
    ],
)
async def test_nothing_is_made_for_any_other_object_that_is_gone(primary: Manifest) -> None:
    cluster, executor = await after_a_term_began()
    with pytest.raises(Gone):
        await executor.carry_out(primary, PLAN)
    assert (cluster.read, cluster.created) == (["owner"], [])
