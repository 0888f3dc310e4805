# SPDX-License-Identifier: Apache-2.0
"""Endpoints read their base model in place in an OCI image from a registry, and refuse a wrong image."""

import base64
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest

from finetune_client.backend import Object
from finetune_client.endpoint import ask, open_endpoint
from tests.e2e import manifests
from tests.e2e.pods import Keeper
from tests.e2e.sessions import selected
from tests.e2e.team import Team, condition_of, name_of, uid_of
from tools.release.registry import OciRegistry

pytestmark = pytest.mark.skipif(
    bool(os.environ.get("KUBE_CONTEXT")), reason="only the local node pulls from this machine's loopback"
)

NOT_THE_MODEL: Final = {
    "artifact": "mounted as an empty folder",
    "changed": "model.safetensors was changed or damaged",
}
"""Endpoints whose image is not their base model, and what they say of it."""
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Images:
    """A registry with images of one model."""

    registry: OciRegistry
    scratch: Path

    def push(self, name: str, folder: Path) -> str:
        """Push an image with the files of the folder. Returns its reference by digest."""
        layer, tag = self.scratch / f"{name}.tar", f"{self.registry.address}/models/{name}:1"
        with tarfile.open(layer, "w") as archive:
            archive.add(folder, arcname=".")
        self.registry.crane("append", "--oci-empty-base", f"--new_layer={layer}", f"--new_tag={tag}")
        self.registry.crane("mutate", "--set-platform=linux/amd64", f"--tag={tag}", tag)
        return f"{tag.removesuffix(':1')}@{self.registry.crane('digest', tag)}"

    def push_artifact(self, name: str, file: Path) -> str:
        """Push a file as it is, as `oras push` does. Returns the reference of the artifact by digest."""
        repository = f"http://{self.registry.address}/v2/models/{name}"
        with httpx.Client(trust_env=False) as client:

            def put(content: bytes, media_type: str, **more: object) -> Object:
                digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
                begun = client.post(f"{repository}/blobs/uploads/").raise_for_status()
                place = httpx.URL(repository).join(begun.headers["location"])
                client.put(place.copy_merge_params({"digest": digest}), content=content).raise_for_status()
                return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

            title = {"org.opencontainers.image.title": file.name}
            manifest = json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": put(b"{}", "application/vnd.unknown.config.v1+json"),
                    "layers": [put(file.read_bytes(), "application/json", annotations=title)],
                }
            ).encode()
            digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
            pushed = client.put(
                f"{repository}/manifests/{digest}", content=manifest, headers={"content-type": MANIFEST}
            )
            pushed.raise_for_status()
        return f"{self.registry.address}/models/{name}@{digest}"


@pytest.fixture(scope="module")
def references(
    team: Team, keeper: Keeper, routing: Object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The image of each endpoint: of its base model, of one with a changed file, and one that is none."""
    scratch = tmp_path_factory.mktemp("images")
    digest = team.checkpoint_of(routing)["spec"]["lineage"]["baseModel"]["digest"]
    content = keeper.run(f"tar -C /store/models/{digest.removeprefix('sha256:')} -c . | base64")
    model = scratch / "model"
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(content))) as archive:
        archive.extractall(model, filter="data")
    with OciRegistry(scratch / "registry") as registry:
        images = Images(registry, scratch)
        found = {
            "imaged": images.push("imaged", model),
            "artifact": images.push_artifact("artifact", model / "config.json"),
        }
        weights = model / "model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        yield found | {"changed": images.push("changed", model)}


@pytest.fixture(scope="module")
def applied(
    request: pytest.FixtureRequest, team: Team, routing: Object, references: dict[str, str]
) -> Iterator[None]:
    """The endpoints of the selected tests, all at once, each with a profile and an image of its own."""
    images = ["imaged", *(name for name in NOT_THE_MODEL if name in selected(request, "name"))]
    checkpoint = team.checkpoint_of(routing)
    base = checkpoint["spec"]["lineage"]["baseModel"]["digest"]
    profiles = {name: f"e2e-{name}-{manifests.OWN}" for name in images}
    for name, profile_name in profiles.items():
        profile = manifests.profile(profile_name)
        profile["spec"]["serving"] = {
            "modelCache": {"images": [{"model": base, "reference": references[name]}]}
        }
        team.access.kubectl("apply", "--server-side", "--filename=-", text=json.dumps(profile))
        endpoint = manifests.endpoint(name, "routing")
        endpoint["spec"] |= {
            "compute": {"profile": profile_name},
            "models": [{"name": "tuned", "pin": {"checkpoint": name_of(checkpoint)}}],
        }
        team.apply(endpoint)
    yield
    team.kubectl("delete", "infd", *images)
    team.access.kubectl("delete", "computeprofiles", *profiles.values())


def test_a_pod_reads_the_base_model_in_place_in_an_image(team: Team, applied: None) -> None:
    endpoint = team.until("InferenceDeployment", "imaged", "Ready")

    (pod,) = team.children("pods", uid_of(endpoint))
    engine = f"{name_of(pod)} -c engine --".split()
    files = team.kubectl("exec", *engine, "find", "/mnt/models", "-type", "f", "-name", "*.safetensors")
    assert files.split() == ["/mnt/models/tuned/adapter_model.safetensors"]
    weights = team.kubectl("exec", *engine, "readlink", "-f", "/mnt/models/base/model.safetensors")
    assert weights.strip() == "/mnt/model-cache/model.safetensors"
    with open_endpoint(team.access, "imaged", team.namespace) as found, found.client() as client:
        assert ask(client, "tuned", "order late?") == "billing"


@pytest.mark.parametrize("name", ["artifact", pytest.param("changed", marks=pytest.mark.full)])
def test_an_image_that_is_not_the_model_never_serves_and_the_endpoint_says_why(
    team: Team, applied: None, references: dict[str, str], name: str
) -> None:
    stalled = team.until("InferenceDeployment", name, "Stalled", "RolloutFailed")

    found = condition_of(stalled, "Stalled")["message"]
    assert NOT_THE_MODEL[name] in found
    assert references[name] in found
