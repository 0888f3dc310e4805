# SPDX-License-Identifier: Apache-2.0
"""The Service in front of a revision that gets no requests of the endpoint yet."""

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.manifests.labels import REVISION
from finetune_operator.manifests.serving import build_service
from finetune_operator.plan import Manifest


def preview_name(endpoint: InferenceDeployment) -> str:
    """`<endpoint>-preview`."""
    return f"{endpoint.name}-preview"


def preview_url(endpoint: InferenceDeployment) -> str:
    """Base URL for an OpenAI client in the cluster."""
    return f"http://{preview_name(endpoint)}.{endpoint.namespace}.svc/v1"


def build_preview_service(endpoint: InferenceDeployment, revision: str, uid: str | None = None) -> Manifest:
    """The preview Service, which selects this revision.

    Args:
        endpoint: owner of the Service.
        revision: name of the revision.
        uid: uid of the existing Service, if its selector changes.
    """
    service = build_service(endpoint, {REVISION: revision}, uid=uid)
    service["metadata"]["name"] = preview_name(endpoint)
    return service
