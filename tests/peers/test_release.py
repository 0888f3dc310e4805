# SPDX-License-Identifier: Apache-2.0
"""A release in a private registry: its signatures by Sigstore's own library, and its use on a real node."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import finetune_operator
from tests.docsblocks import blocks
from tests.e2e.manifests import SMALL, sized
from tests.peers.documentedsteps import DocumentedSteps
from tests.peers.signedrelease import SignedRelease, make_release
from tests.privateregistry import PrivateRegistry
from tests.trainer.remote.hubserver import HubServer, Repository
from tools.cluster import TestCluster
from tools.cluster.layout import ISOLATED, NODE_ADDRESS
from tools.cluster.toolchain import VERIFY_BUNDLE, ensure
from tools.models import tiny
from tools.release.statements import BILL, PROVENANCE, SIGNATURE

pytestmark = pytest.mark.skipif(
    ISOLATED not in os.environ, reason="make test-peers runs this in namespaces with a cluster"
)

MARKER = "run by tests/peers/test_release.py"
PROFILE = {
    "accelerator": {"resource": "cpu", "maxPerPod": 2},
    "pods": sized(SMALL),
    "store": {"uri": "pvc://artifacts", "accessMode": "ReadWriteOnce"},
}
HOSTS = "/etc/containerd/certs.d/registry.example.com/hosts.toml"
PULL_SECRET = (
    "kubectl -n team-a create secret docker-registry registry --docker-server=registry.example.com "
    "--docker-username=USER --docker-password=PASSWORD"
)
HUB_SECRET = "kubectl -n team-a create secret generic hub --from-literal=HF_TOKEN=hf_TOKEN"
BASE_MODEL = "baseModel: {uri: hf://Qwen/Qwen3-0.6B}\n  chatTemplateKwargs"
IMAGE_NAMES = "{.items[*].spec.containers[*].image}"
IMAGES = {"finetune-operator", "finetune-trainer-cpu"}
CHARTS = {"chart-finetune-operator"}


def documented(command: str) -> str:
    """The block of releases.md with a command."""
    marked = (each.text for each in blocks() if each.page.name == "releases.md" and each.marker == MARKER)
    (text,) = (text for text in marked if command in text)
    return text


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signing key, made as releases.md says."""
    folder = tmp_path_factory.mktemp("key")
    subprocess.run(["bash", "-euc", documented("openssl")], cwd=folder, check=True)
    return folder / "release.pem"


@pytest.fixture(scope="module")
def release(key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignedRelease]:
    ensure([VERIFY_BUNDLE])
    with PrivateRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield make_release(registry, key)


def test_the_tags_of_a_release_are_its_version(release: SignedRelease) -> None:
    version = finetune_operator.__version__
    assert release.artifacts.keys() >= IMAGES | CHARTS
    assert release.artifacts["finetune-trainer-cpu"]["tags"] == [f"{version}-cpu", version]
    for name, artifact in release.artifacts.items():
        for tag in artifact["tags"]:
            assert release.digest(name, tag) == artifact["digest"]


def test_every_artifact_has_statements_that_sigstore_verifies(release: SignedRelease, tmp_path: Path) -> None:
    for name, artifact in release.artifacts.items():
        found = [release.verify(each, artifact["digest"]) for each in release.bundles(name, tmp_path)]
        types = {each["predicateType"] for each in found}
        assert types == {SIGNATURE, PROVENANCE, *({BILL} if name in IMAGES else ())}
        for each in found:
            algorithm, _, value = artifact["digest"].partition(":")
            assert each["subject"] == [{"name": artifact["repository"], "digest": {algorithm: value}}]


def test_a_statement_is_refused_for_another_artifact_and_by_another_key(
    release: SignedRelease, tmp_path: Path
) -> None:
    digest = release.artifacts["finetune-operator"]["digest"]
    bundle = release.bundles("finetune-operator", tmp_path)[0]
    with pytest.raises(AssertionError, match="artifact digest does not match"):
        release.verify(bundle, release.artifacts["finetune-trainer-cpu"]["digest"])

    other = tmp_path / "other.pub"
    generate = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkey -pubout"
    other.write_bytes(subprocess.run(["bash", "-euc", generate], stdout=subprocess.PIPE, check=True).stdout)
    with pytest.raises(AssertionError, match="signatures do not match"):
        release.verify(bundle, digest, other)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def hub(cluster: TestCluster) -> Iterator[HubServer]:
    """A hub that pods reach, with the tiny model under the name of the documented one, for a token only."""
    with HubServer(str(NODE_ADDRESS)) as server:
        server.authorization = "Bearer hf_TOKEN"
        repository = server.repositories["models/Qwen/Qwen3-0.6B"] = Repository()
        repository.commit(contents(tiny()))
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[TestCluster]:
    with TestCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def steps(
    release: SignedRelease, cluster: TestCluster, hub: HubServer, tmp_path_factory: pytest.TempPathFactory
) -> DocumentedSteps:
    """A user's folder, which is not a checkout."""
    names = {
        "kubectl create namespace team-a": f"kubectl create namespace team-a\n{PULL_SECRET}\n{HUB_SECRET}",
        # Only a Secret leads to another hub than the public one. Its token is the one for a gated model.
        "HF_TOKEN=hf_TOKEN": f"HF_TOKEN=hf_TOKEN --from-literal=HF_ENDPOINT={hub.endpoint}",
        BASE_MODEL: BASE_MODEL.replace("}", ", credentialsSecretRef: {name: hub}}"),
        "registry.example.com/finetune": release.prefix,
        "mirror.example.com/finetune": f"{release.registry.address}/mirror",
        "registry.example.com": release.registry.address,
        "mirror.example.com": release.registry.address,
        ":0.1.0": f":{finetune_operator.__version__}",
        "/etc/ssl/registry-ca.crt": str(release.registry.ca),
        "https://huggingface.co": hub.endpoint,
        # The test cluster has a local volume, and the tiny model learns one answer in 15 epochs.
        "ReadWriteMany": "ReadWriteOnce",
        "epochs: 10, learningRate: 0.001": "epochs: 15, learningRate: 0.01",
        "shipping": "billing",
    }
    environment = {"SSL_CERT_FILE": str(release.registry.ca)}
    return DocumentedSteps(tmp_path_factory.mktemp("user"), cluster.kubeconfig, names, environment)


def test_a_platform_team_installs_from_the_registry(
    steps: DocumentedSteps, release: SignedRelease, cluster: TestCluster
) -> None:
    node = cluster.layout.registries / release.registry.address / "hosts.toml"
    node.parent.mkdir(parents=True, exist_ok=True)
    node.write_text(steps.file("installation.md", HOSTS))
    steps.write_values("installation.md", "platform.yaml", PROFILE)

    outputs = steps.run("installation.md")

    assert outputs[-1].splitlines()[-2:] == ["yes", "yes"]


def test_cosign_verifies_an_image_as_documented(steps: DocumentedSteps, release: SignedRelease) -> None:
    key = steps.folder / "release.pub"
    shutil.copy(release.public, key)
    statements = steps.shell(documented("cosign"))
    assert release.artifacts["finetune-operator"]["digest"] in statements

    other = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 | openssl pkey -pubout"
    steps.shell(f"{other} > release.pub")
    with pytest.raises(AssertionError, match="could not verify envelope"):
        steps.shell(documented("cosign"))


@pytest.mark.timeout(1800)
def test_the_quickstart_leads_from_a_registry_to_an_answer(
    steps: DocumentedSteps, release: SignedRelease
) -> None:
    secrets = [{"name": "registry"}]
    runner = {"imagePullSecrets": secrets}
    steps.write_values("quickstart.md", "values.yaml", PROFILE, imagePullSecrets=secrets, runner=runner)

    output = steps.run("quickstart.md")[-1]

    # `kubectl port-forward` writes lines of its own.
    answer = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert answer["choices"][0]["message"]["content"] == "billing"
    pods = "kubectl get pods -A --field-selector metadata.namespace!=kube-system"
    images = steps.shell(f"{pods} -o jsonpath='{IMAGE_NAMES}'").split()
    assert {each.rpartition("/")[0] for each in images} == {release.prefix}


def test_members_of_a_team_get_their_rights(steps: DocumentedSteps) -> None:
    (output,) = steps.run("tenants.md")
    assert output.splitlines()[-1] == "yes"


def test_a_base_model_is_copied_to_a_claim(steps: DocumentedSteps, cluster: TestCluster) -> None:
    shutil.copytree(tiny(), steps.folder / "gemma-3-270m")

    steps.run("models.md")

    (copied,) = cluster.layout.volumes.glob("*/gemma-3-270m")
    assert contents(copied) == contents(tiny())


def test_results_are_fetched_as_their_page_says(steps: DocumentedSteps) -> None:
    steps.run("results.md")

    files = {file.name for folder in ("checkpoints", "runs") for file in (steps.folder / folder).rglob("*")}
    assert {"adapter_model.safetensors", "report.html", "evaluation.html", "predictions.jsonl"} <= files


def test_an_upgrade_a_rollback_and_the_removal_restart_no_pod(steps: DocumentedSteps) -> None:
    serving = "kubectl -n team-a get pods -l finetune.dev/revision -o jsonpath='{.items[*].metadata.uid}'"
    before = steps.shell(serving)

    steps.run("upgrading.md")

    assert before
    assert steps.shell(serving) == before
