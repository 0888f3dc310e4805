# SPDX-License-Identifier: Apache-2.0
"""What a release says about its artifacts, and what it refuses to release."""

import base64
import json
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from typing_extensions import override

from tools.bootstrap.uv import ROOT
from tools.cluster import toolchain
from tools.cluster.commands import ClusterError
from tools.images.buildah import ImageError
from tools.images.tags import Variant
from tools.release import publish, registry
from tools.release.__main__ import add_tags
from tools.release.publish import LIST, Release, tag_release, with_registry, write_list
from tools.release.registry import Registry
from tools.release.statements import (
    BILL,
    PROVENANCE,
    SIGNATURE,
    Artifact,
    Build,
    SigningKey,
    SourceCommit,
    statements,
)

REGISTRY = "registry.example.com/finetune"
TYPES = [SIGNATURE, PROVENANCE, BILL]
DIGEST = "sha256:" + "ab" * 32
BASE = "python:3.11@sha256:" + "cd" * 32
BUILD = Build(
    SourceCommit("0123abcd", "git+https://git.example.com/finetune"),
    "1.2.3",
    "https://builder.example.com",
    datetime(2026, 11, 28, 1, 2, 3, tzinfo=UTC),
    datetime(2026, 11, 28, 2, 3, 4, tzinfo=UTC),
    {"constraints/trainer.txt": "ef" * 32},
)


def pem_of(curve: ec.EllipticCurve) -> bytes:
    return ec.generate_private_key(curve).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    bill = tmp_path / "bill.json"
    bill.write_text('{"bomFormat": "CycloneDX"}')
    return Artifact("finetune-trainer-cpu", f"{REGISTRY}/finetune-trainer", ("1.2.3",), DIGEST, bill, BASE)


def test_each_statement_is_about_the_digest_of_the_artifact(artifact: Artifact) -> None:
    found = statements(artifact, BUILD)

    types = {name: each["predicateType"] for name, each in found.items()}
    assert types == {"signature": SIGNATURE, "provenance": PROVENANCE, "sbom": BILL}
    for each in found.values():
        assert each["subject"] == [{"name": artifact.repository, "digest": {"sha256": "ab" * 32}}]
    assert found["sbom"]["predicate"] == {"bomFormat": "CycloneDX"}


def test_the_provenance_names_the_commit_the_base_image_and_the_pins(artifact: Artifact) -> None:
    predicate = statements(artifact, BUILD)["provenance"]["predicate"]

    digests = {each["name"]: each["digest"] for each in predicate["buildDefinition"]["resolvedDependencies"]}
    assert digests == {
        "source": {"gitCommit": "0123abcd"},
        "python:3.11": {"sha256": "cd" * 32},
        "constraints/trainer.txt": {"sha256": "ef" * 32},
    }
    assert predicate["runDetails"] == {
        "builder": {"id": "https://builder.example.com"},
        "metadata": {"startedOn": "2026-11-28T01:02:03Z", "finishedOn": "2026-11-28T02:03:04Z"},
    }


def test_a_chart_has_no_bill_of_materials() -> None:
    chart = Artifact("chart", f"{REGISTRY}/charts/finetune-operator", ("1.2.3",), DIGEST)
    assert statements(chart, BUILD).keys() == {"signature", "provenance"}


def test_the_public_key_verifies_the_envelope_of_a_bundle(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(pem_of(ec.SECP256R1()))
    key = SigningKey.read(file, None)

    envelope = json.loads(key.sign({"predicateType": SIGNATURE}))["dsseEnvelope"]

    payload = base64.b64decode(envelope["payload"])
    assert json.loads(payload) == {"predicateType": SIGNATURE}
    (signature,) = envelope["signatures"]
    public = load_pem_public_key(key.public.encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    # The encoding that DSSE signs.
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    public.verify(base64.b64decode(signature["sig"]), signed, ec.ECDSA(SHA256()))


def test_a_key_of_another_curve_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(pem_of(ec.SECP384R1()))
    with pytest.raises(ImageError, match="not a key of the curve P-256"):
        SigningKey.read(file, None)


def test_the_values_of_a_released_chart_name_the_registry() -> None:
    text = (ROOT / "charts" / "finetune-operator" / "values.yaml").read_text()

    values = yaml.safe_load(with_registry(text, REGISTRY))

    assert values["image"]["registry"] == values["trainerImage"]["registry"] == REGISTRY
    assert values["global"]["imageRegistry"] == ""


def test_values_with_images_in_another_form_are_refused() -> None:
    with pytest.raises(ImageError, match=r"tools/release/publish\.py"):
        with_registry("image: {registry: ''}\n", REGISTRY)


def release() -> Release:
    return Release(Registry(REGISTRY), (Variant.CPU,), None, "https://builder.example.com")


def test_a_tree_with_changes_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_git", lambda *_: " M pyproject.toml")
    with pytest.raises(ImageError, match="the working tree has changes"):
        release().publish()


def test_a_base_image_without_a_digest_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "_git", lambda *_: "")
    monkeypatch.setattr(publish, "ensure", lambda _: None)
    monkeypatch.setenv("BASE_IMAGE", "python:3.11")
    with pytest.raises(ImageError, match="base image with a digest"):
        release().publish()


HEAD = f"HEAD request failed, falling back on GET: HEAD https://{REGISTRY}: unexpected status code"
UNKNOWN = [
    f"{HEAD} 404 Not Found (HEAD responses have no body)\nError: NOT_FOUND: artifact 1.2.3 not found",
    f"{HEAD} 405 Method Not Allowed\nError: fetching {REGISTRY}: MANIFEST_UNKNOWN: manifest unknown",
    f"{HEAD} 405 Method Not Allowed\nError: fetching {REGISTRY}: NAME_UNKNOWN: repository not known",
    f"{HEAD} 404 Not Found\nError: GET https://{REGISTRY}: unexpected status code 404 Not Found: page",
]
REFUSED = {
    f"{HEAD} 401 Unauthorized\nError: UNAUTHORIZED: authentication required": r"buildah login registry\.ex",
    f"{HEAD} 403 Forbidden\nError: DENIED: access denied": "this account of registry",
    "Error: x509: certificate signed by unknown authority": "SSL_CERT_FILE",
    "Error: dial tcp: lookup registry.example.com: no such host": "correct IMAGE_REGISTRY",
    "Error: dial tcp: lookup registry.example.com on 10.0.0.1:53: connect: network is unreachable": (
        "correct IMAGE_REGISTRY"
    ),
    f"{HEAD} 500 Internal Server Error\nError: UNKNOWN: storage": "UNKNOWN: storage$",
    f"{HEAD} 404 Not Found\nError: GET https://{REGISTRY}: unexpected status code 500": "status code 500$",
    f"{HEAD} 404 Not Found\nError: UNAUTHORIZED: authentication required": r"buildah login registry\.ex",
    f"{HEAD} 429 Too Many Requests\nError: TOOMANYREQUESTS: digest sha256:404403": "sha256:404403$",
}
"""Messages of crane, and what the error must say."""


def answer(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    """Let all programs end with this message."""
    done = subprocess.CompletedProcess(["/bin/crane", "digest"], 1, "", message)
    monkeypatch.setattr(registry, "_start", lambda *_, **__: done)


@pytest.mark.parametrize("message", UNKNOWN)
def test_a_version_is_new_if_the_registry_has_no_manifest(
    message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, message)
    release().require_new("1.2.3")


@pytest.mark.parametrize(("message", "advice"), REFUSED.items())
def test_another_answer_of_the_registry_stops_the_release(
    message: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, message)
    with pytest.raises(ImageError, match=advice) as raised:
        release().require_new("1.2.3")
    assert message in str(raised.value)


class TaggedRegistry(Registry):
    """A registry that knows the digests of names and the attached bundles, and writes down tags."""

    def __init__(self, present: dict[str, str], bundles: Sequence[str] = ()) -> None:
        super().__init__(REGISTRY)
        self.present = present
        self.bundles = list(bundles)
        self.tagged: list[tuple[str, str]] = []

    @override
    def attached(self, subject: str, media_type: str) -> list[str]:
        return self.bundles

    def digest(self, reference: str) -> str | None:
        return self.present.get(reference)

    def tag(self, reference: str, tag: str) -> None:
        self.tagged.append((reference, tag))


@pytest.fixture
def listed(artifact: Artifact, tmp_path: Path) -> Artifact:
    write_list(tmp_path, {artifact: TYPES}, "1.2.3", "0123abcd", None)
    return artifact


def bundle_of_another_program(predicate_type: str, digest: str = DIGEST) -> str:
    """A bundle as cosign attaches it, with what tags depend on."""
    algorithm, _, value = digest.partition(":")
    statement = {"predicateType": predicate_type, "subject": [{"digest": {algorithm: value}}]}
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    return json.dumps({"dsseEnvelope": {"payload": payload}})


SIGNED = [json.dumps({"messageSignature": {}}), *(bundle_of_another_program(each) for each in TYPES)]


@pytest.mark.parametrize("present", [None, DIGEST])
def test_tags_can_be_added_again(listed: Artifact, tmp_path: Path, present: str | None) -> None:
    found = TaggedRegistry({f"{listed.repository}:1.2.3": present} if present else {}, SIGNED)
    tag_release(found, tmp_path)
    assert found.tagged == [(listed.reference, "1.2.3")]


def test_a_tag_of_another_artifact_is_not_moved(listed: Artifact, tmp_path: Path) -> None:
    found = TaggedRegistry({f"{listed.repository}:1.2.3": "sha256:" + "ef" * 32}, SIGNED)
    with pytest.raises(ImageError, match="a version is never replaced"):
        tag_release(found, tmp_path)
    assert found.tagged == []


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(
    ("bundles", "missing"),
    [
        ([], SIGNATURE),
        (SIGNED[:-1], BILL),
        ([*SIGNED[:-1], bundle_of_another_program(BILL, "sha256:" + "ef" * 32)], BILL),
    ],
    ids=["nothing is signed", "one is not signed", "one is about another artifact"],
)
def test_a_release_that_nothing_has_signed_is_not_tagged(
    bundles: list[str], missing: str, tmp_path: Path
) -> None:
    found = TaggedRegistry({}, bundles)
    with pytest.raises(ImageError, match=f"no signed statement .*{re.escape(missing)}.*RELEASE_KEY"):
        tag_release(found, tmp_path)
    assert found.tagged == []


def test_a_trial_is_tagged_without_signatures(listed: Artifact, tmp_path: Path) -> None:
    found = TaggedRegistry({})
    tag_release(found, tmp_path, is_trial=True)
    assert found.tagged == [(listed.reference, "1.2.3")]


def test_with_a_key_the_list_and_not_the_files_says_which_statements_are_verified(
    listed: Artifact, tmp_path: Path
) -> None:
    public = SigningKey(ec.generate_private_key(ec.SECP256R1())).public
    write_list(tmp_path, {listed: TYPES}, "1.2.3", "0123abcd", public)
    found = TaggedRegistry({})
    with pytest.raises(ImageError, match="no valid statement"):
        tag_release(found, tmp_path)
    assert found.tagged == []


@pytest.mark.parametrize("lost", ["statements", "publicKey"])
def test_a_list_without_statements_is_refused(listed: Artifact, lost: str, tmp_path: Path) -> None:
    document = json.loads((tmp_path / LIST).read_text())
    for each in (document, *document["artifacts"]):
        each.pop(lost, None)
    (tmp_path / LIST).write_text(json.dumps(document))
    found = TaggedRegistry({f"{listed.repository}:1.2.3": DIGEST}, SIGNED)
    with pytest.raises(ImageError, match="does not name the statements"):
        tag_release(found, tmp_path)


@pytest.mark.usefixtures("listed")
def test_adding_tags_needs_the_programs_of_a_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.cluster.toolchain.cache_directory", lambda: tmp_path)
    message = "there is no Go compiler"

    def no_compiler() -> str:
        raise ClusterError(message)

    monkeypatch.setattr(toolchain, "go_compiler", no_compiler)
    monkeypatch.setenv("IMAGE_REGISTRY", REGISTRY)

    with pytest.raises(typer.Exit):
        add_tags()

    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("listed")
def test_the_list_of_another_registry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="of another IMAGE_REGISTRY"):
        tag_release(Registry("another.example.com/finetune"), tmp_path)
