"""A release in a real registry: what it contains, and its signatures by Sigstore's own library."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import finetune_operator
from tests.docsblocks import blocks
from tests.ociregistry import OciRegistry
from tests.peers.signedrelease import SignedRelease, make_release
from tools.cluster.binaries import ensure
from tools.cluster.layout import ISOLATED
from tools.cluster.toolchain import VERIFY_BUNDLE
from tools.release.statements import BILL, PROVENANCE, SIGNATURE

pytestmark = pytest.mark.skipif(
    ISOLATED not in os.environ, reason="make test-peers runs this in namespaces with a cluster"
)

MARKER = "run by tests/peers/test_release.py"
IMAGES = {"finetune-operator", "finetune-trainer-cpu"}
CHARTS = {"chart-finetune-operator"}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signing key, made as releases.md says."""
    folder = tmp_path_factory.mktemp("key")
    (block,) = [each for each in blocks() if each.page.name == "releases.md" and each.marker == MARKER]
    subprocess.run(["bash", "-euc", block.text], cwd=folder, check=True)
    return folder / "release.pem"


@pytest.fixture(scope="module")
def release(key: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SignedRelease]:
    ensure([VERIFY_BUNDLE])
    with OciRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield make_release(registry, key)


def test_the_tags_of_a_release_are_its_version(release: SignedRelease) -> None:
    version = finetune_operator.__version__
    assert release.artifacts.keys() >= IMAGES | CHARTS
    assert release.artifacts["finetune-trainer-cpu"]["tags"] == [f"{version}-cpu", version]
    for artifact in release.artifacts.values():
        for tag in artifact["tags"]:
            assert release.registry.crane("digest", f"{artifact['repository']}:{tag}") == artifact["digest"]


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
