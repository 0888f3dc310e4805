# SPDX-License-Identifier: Apache-2.0
"""A release goes into a registry with an account and TLS, and has no tag before its statements are verified.

It has the charts only, so that no image is built.
"""

import json
import subprocess
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import finetune_operator
from tests.privateregistry import PrivateRegistry
from tests.trainer.remote.webserver import Answer, Seen, WebServer
from tools.cluster.toolchain import ensure
from tools.images.buildah import ImageError
from tools.peers.toolchain import COSIGN
from tools.release.publish import LIST, Release, tag_release
from tools.release.registry import Registry
from tools.release.statements import Artifact, SigningKey

CHART: Final = "charts/finetune-operator"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRegistry]:
    with PrivateRegistry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def environment(server: PrivateRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """File with the credentials that all clients use."""
    for name, value in server.log_in(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "config.json"


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    file = tmp_path / "key.pem"
    private = ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return SigningKey.read(file, None)


class Folder:
    """A release in a folder of its own of the registry."""

    def __init__(self, server: PrivateRegistry, name: str, key: SigningKey | None, files: Path) -> None:
        self.name = name
        self.registry = Registry(f"{server.address}/{name}")
        builder = "https://builder.example.com"
        self.release = Release(self.registry, (), key, builder, is_trial=True, folder=files / "release")
        self._server = server

    @property
    def list(self) -> Path:
        return self.release.folder / LIST

    def add_tags(self) -> None:
        tag_release(self.registry, self.release.folder)

    def tags(self) -> set[str]:
        """Tags of the chart that users install, without those that replace an API for referrers."""
        with self._server.client() as client:
            answer = client.get(f"{self.name}/{CHART}/tags/list")
        found = answer.json().get("tags") or [] if answer.is_success else []
        return {each for each in found if not each.startswith("sha256-")}

    def delete_statements(self, digest: str) -> None:
        """Delete the index of the attached artifacts; its tag replaces an API of the registry."""
        with self._server.client() as client:
            path = f"{self.name}/{CHART}/manifests"
            index = client.get(f"{path}/{digest.replace(':', '-')}").raise_for_status()
            client.delete(f"{path}/{index.headers['docker-content-digest']}").raise_for_status()


def test_nobody_reads_the_registry_without_the_account(server: PrivateRegistry) -> None:
    with server.client(password="another") as client:
        assert client.get("").status_code == HTTPStatus.UNAUTHORIZED


@pytest.mark.usefixtures("environment")
def test_a_release_has_no_tag_before_its_statements_are_verified(
    server: PrivateRegistry, key: SigningKey, tmp_path: Path
) -> None:
    folder = Folder(server, "signed", key, tmp_path)

    folder.release.publish()
    assert folder.list.exists()
    assert folder.tags() == set()
    folder.add_tags()

    assert folder.tags() == {finetune_operator.__version__}


@pytest.mark.usefixtures("environment")
def test_a_release_whose_statements_are_lost_is_not_tagged(
    server: PrivateRegistry, key: SigningKey, tmp_path: Path
) -> None:
    folder = Folder(server, "lost", key, tmp_path)
    (chart,) = (each for each in folder.release.publish() if each.repository.endswith(CHART))
    folder.delete_statements(chart.digest)

    with pytest.raises(ImageError, match=r"has no valid statement .*sign/v1.*slsa\.dev"):
        folder.add_tags()

    assert folder.tags() == set()


@pytest.mark.usefixtures("environment")
def test_a_release_that_another_key_signed_is_not_tagged(
    server: PrivateRegistry, key: SigningKey, tmp_path: Path
) -> None:
    folder = Folder(server, "another", key, tmp_path)
    folder.release.publish()
    other = ec.generate_private_key(ec.SECP256R1())
    document = json.loads(folder.list.read_text())
    folder.list.write_text(json.dumps({**document, "publicKey": SigningKey(other).public}))

    with pytest.raises(ImageError, match="signatures do not match"):
        folder.add_tags()

    assert folder.tags() == set()


def cosign(*arguments: str) -> None:
    ensure([COSIGN])
    done = subprocess.run([COSIGN.program("cosign"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def sign_with_cosign(artifact: Artifact, statements: Path, folder: Path) -> None:
    """Sign and attest as the workflow in .github does, but with a key: no public service is reached."""
    options = ("--yes", f"--key={folder / 'cosign.key'}", "--tlog-upload=false", "--use-signing-config=false")
    cosign("sign", *options, artifact.reference)
    statement = json.loads((statements / f"{artifact.name}.provenance.json").read_text())
    predicate = folder / "predicate.json"
    predicate.write_text(json.dumps(statement["predicate"]))
    types = (f"--type={statement['predicateType']}", f"--predicate={predicate}")
    cosign("attest", *options, *types, artifact.reference)


@pytest.mark.usefixtures("environment", "key")
def test_a_release_without_a_key_is_tagged_after_cosign_has_signed_it(
    server: PrivateRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COSIGN_PASSWORD", "")
    prefix = f"--output-key-prefix={tmp_path / 'cosign'}"
    cosign("import-key-pair", f"--key={tmp_path / 'key.pem'}", prefix)
    folder = Folder(server, "cosign", None, tmp_path)
    artifacts = folder.release.publish()

    with pytest.raises(ImageError, match=r"no signed statement .*sign/v1.*slsa\.dev"):
        folder.add_tags()
    assert folder.tags() == set()

    for each in artifacts:
        sign_with_cosign(each, folder.release.folder, tmp_path)
    folder.add_tags()
    assert folder.tags() == {finetune_operator.__version__}


@pytest.mark.usefixtures("environment")
def test_a_version_that_exists_is_refused_before_anything_is_built(
    server: PrivateRegistry, key: SigningKey, tmp_path: Path
) -> None:
    folder = Folder(server, "twice", key, tmp_path)
    folder.release.publish()
    folder.add_tags()
    document = json.loads(folder.list.read_text())

    with pytest.raises(ImageError, match=r"exists .*raise project\.version"):
        folder.release.require_new(document["version"])
    folder.release.publish()
    with pytest.raises(ImageError, match="a version is never replaced"):
        folder.add_tags()


def test_without_credentials_the_message_names_the_login(
    server: PrivateRegistry, environment: Path, tmp_path: Path
) -> None:
    environment.write_text("{}")
    with pytest.raises(ImageError, match=rf"UNAUTHORIZED.*\n.*buildah login {server.address}"):
        Folder(server, "private", None, tmp_path).release.require_new("1.2.3")


@pytest.mark.usefixtures("environment")
def test_an_unknown_certificate_is_named(
    server: PrivateRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    with pytest.raises(ImageError, match=r"(?s)x509: .*SSL_CERT_FILE"):
        Folder(server, "private", None, tmp_path).release.require_new("1.2.3")


class Refusing(WebServer):
    """A registry in which the account has no rights."""

    def answer(self, asked: Seen) -> Answer:
        if asked.path == "/v2/":
            return Answer()
        refusal = {"errors": [{"code": "DENIED", "message": "requested access to the resource is denied"}]}
        return Answer(json.dumps(refusal).encode(), HTTPStatus.FORBIDDEN)


def test_a_missing_right_is_named() -> None:
    with Refusing() as server:
        registry = Registry(server.host)
        with pytest.raises(ImageError, match=r"(?s)DENIED.*may not pull and push"):
            registry.digest(f"{registry.prefix}/finetune-operator:1.2.3")


def test_a_wrong_name_is_named() -> None:
    registry = Registry("registry.invalid/finetune")
    with pytest.raises(ImageError, match="correct IMAGE_REGISTRY"):
        registry.digest(f"{registry.prefix}/finetune-operator:1.2.3")


@pytest.mark.usefixtures("environment")
def test_a_repository_that_does_not_exist_has_no_manifest(server: PrivateRegistry) -> None:
    registry = Registry(f"{server.address}/none")
    assert registry.digest(f"{registry.prefix}/finetune-operator:1.2.3") is None
