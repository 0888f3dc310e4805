# SPDX-License-Identifier: Apache-2.0
"""The Service in front of a revision in preview, which exists only as long as there is one."""

from typing import NamedTuple

from finetune_operator.engine.resources import SERVICE
from finetune_operator.manifests.endpoint import build_preview_service, preview_name
from finetune_operator.manifests.labels import REVISION
from finetune_operator.plan import Apply, Create, Delete
from finetune_operator.reconcile.inferencedeployment.rollout.view import EndpointView


class PreviewWrites(NamedTuple):
    """Writes of the preview Service."""

    create: tuple[Create, ...] = ()
    apply: tuple[Apply, ...] = ()
    delete: tuple[Delete, ...] = ()


def preview_writes(view: EndpointView, *, exists: bool) -> PreviewWrites:
    """Point the preview Service at the wanted revision, or delete it if it should not exist."""
    service = view.snapshot.children[SERVICE].get(preview_name(view.endpoint))
    name = view.wanted.name
    if not exists:
        return PreviewWrites(delete=() if service is None else (Delete(service, "Background"),))
    if service is None:
        return PreviewWrites(create=(Create(build_preview_service(view.endpoint, name)),))
    if service["spec"].get("selector", {}).get(REVISION) == name:
        return PreviewWrites()
    uid = service["metadata"]["uid"]
    return PreviewWrites(apply=(Apply(build_preview_service(view.endpoint, name, uid)),))
