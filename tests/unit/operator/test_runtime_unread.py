# SPDX-License-Identifier: Apache-2.0
"""An object that this release cannot read, as after a rollback of the operator alone."""

import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from finetune_operator.engine.errors import Rejected
from finetune_operator.engine.resources import SERVICE
from finetune_operator.manifests.labels import FINALIZER
from finetune_operator.plan import Manifest
from finetune_operator.runtime.caches import Caches
from tests.unit.operator.test_runtime_locks import CHECKPOINTS, Scene, SlowApiServer, approved, key

THEIRS = "example.com/theirs"
DELETED = "2030-01-02T03:00:00Z"


class ApiServer:
    """A fake API server with a namespace, live or terminating, that accepts changes of metadata."""

    def __init__(self, *, terminating: bool) -> None:
        self.patches: list[Manifest] = []
        self._namespace: Manifest = {"kind": "Namespace", "metadata": {"name": "team"}}
        if terminating:
            self._namespace["metadata"]["deletionTimestamp"] = DELETED

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/team", self._get_namespace)
        app.router.add_patch(f"{CHECKPOINTS}/{{name}}", self._patch)
        return app

    async def _get_namespace(self, _: web.Request) -> web.Response:
        return web.json_response(self._namespace)

    async def _patch(self, request: web.Request) -> web.Response:
        patch = json.loads(await request.text())
        self.patches.append(patch)
        return web.json_response(unread(**patch["metadata"] | {"resourceVersion": "8"}))


def unread(**metadata: Any) -> Manifest:
    """A Checkpoint of a newer release."""
    manifest = approved("newer", "7", "2030-01-01T00:00:00Z")
    manifest["spec"]["lineage"] = "another form"
    manifest["metadata"] |= metadata
    return manifest


async def looked_at(manifest: Manifest, *, terminating: bool) -> list[Manifest]:
    """What one pass for the object writes.

    Raises:
        Rejected: the error of the pass.
    """
    caches = Caches()
    caches.kinds["Checkpoint"].put(manifest)
    server = ApiServer(terminating=terminating)
    async with TestServer(server.app()) as listening:
        scene = Scene(str(listening.make_url("/")).rstrip("/"), caches)
        try:
            await scene.controller.reconcile(key("newer"))
        finally:
            await scene.cluster.close()
    return server.patches


async def test_it_does_not_hold_up_a_namespace_that_goes() -> None:
    held = unread(deletionTimestamp=DELETED, finalizers=[THEIRS, FINALIZER])
    (patch,) = await looked_at(held, terminating=True)
    assert patch == {
        "metadata": {"finalizers": [THEIRS], "uid": "uid-of-newer", "resourceVersion": "7"},
    }


@pytest.mark.parametrize(
    ("metadata", "terminating"),
    [
        pytest.param({"finalizers": [FINALIZER]}, True, id="it is not being deleted"),
        pytest.param({"deletionTimestamp": DELETED, "finalizers": [THEIRS]}, True, id="not ours to let go"),
        pytest.param({"deletionTimestamp": DELETED, "finalizers": [FINALIZER]}, False, id="it goes alone"),
    ],
)
async def test_else_it_is_left_as_it_is(metadata: Manifest, terminating: bool) -> None:
    with pytest.raises(Rejected, match="cannot read the object"):
        await looked_at(unread(**metadata), terminating=terminating)


async def test_a_value_of_a_newer_version_is_named_in_a_condition_and_nothing_else_is_done() -> None:
    manifest = approved("newer", "7", "2030-01-01T00:00:00Z")
    manifest["spec"]["deletionPolicy"] = "Archive"
    manifest["status"] = {"observedGeneration": -1, "news": {"a": 1}}
    caches = Caches()
    caches.kinds["Checkpoint"].put(manifest)
    server = SlowApiServer({"newer": manifest})
    server.answers.set()
    async with TestServer(server.app()) as listening:
        scene = Scene(str(listening.make_url("/")).rstrip("/"), caches)
        try:
            await scene.controller.reconcile(key("newer"))
        finally:
            scene.work.cancel()
            await scene.cluster.close()

    written = caches.kinds["Checkpoint"].get("team", "newer")
    assert written is not None
    (condition,) = written["status"]["conditions"]
    assert (condition["type"], condition["reason"]) == ("Reconciling", "UnknownValues")
    assert "does not know the value of spec.deletionPolicy" in condition["message"]
    assert written["status"]["news"] == {"a": 1}


async def scored_in_a_large_namespace(**metadata: Any) -> tuple[bool, list[Manifest]]:
    """Whether a pass for a Checkpoint is refused, and its conditions after it."""
    manifest = approved("newer", "7", "2030-01-01T00:00:00Z")
    manifest["metadata"] |= metadata
    caches = Caches(max_namespace_mebibytes=1)
    caches.kinds["Checkpoint"].put(manifest)
    service = {"name": "s", "namespace": "team", "uid": "s", "resourceVersion": "1"}
    caches.children[SERVICE].put({"metadata": service, "spec": {"externalName": "x" * 2**21}})
    server = SlowApiServer({"newer": manifest})
    server.answers.set()
    async with TestServer(server.app()) as listening:
        scene = Scene(str(listening.make_url("/")).rstrip("/"), caches)
        try:
            await scene.controller.reconcile(key("newer"))
            is_refused = False
        except Rejected:
            is_refused = True
        finally:
            scene.work.cancel()
            await scene.cluster.close()
    written = caches.kinds["Checkpoint"].get("team", "newer")
    assert written is not None
    return is_refused, written.get("status", {}).get("conditions", [])


async def test_a_namespace_of_which_objects_are_left_out_is_left_as_it_is_and_a_condition_says_why() -> None:
    is_refused, (condition,) = await scored_in_a_large_namespace()
    assert is_refused
    assert (condition["type"], condition["reason"]) == ("Reconciling", "NamespaceTooLarge")
    assert "more than the 1 MiB of memory" in condition["message"]


async def test_what_is_being_deleted_there_is_still_released() -> None:
    is_refused, _ = await scored_in_a_large_namespace(deletionTimestamp=DELETED)
    assert not is_refused
