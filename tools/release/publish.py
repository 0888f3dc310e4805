# SPDX-License-Identifier: Apache-2.0
"""Build images and charts, push them without tags, attach statements about them, and list and tag them."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import yaml

import finetune_operator
from tools.bootstrap.uv import ROOT, cache_directory
from tools.cluster.toolchain import ensure
from tools.images.base import base_image, require_pinned
from tools.images.build import bill_file, build_complete
from tools.images.buildah import Buildah, ImageError
from tools.images.tags import Variant
from tools.release.registry import PROGRAMS, OciRegistry, Registry, run
from tools.release.statements import (
    BUNDLE,
    Artifact,
    Build,
    SigningKey,
    SourceCommit,
    require_statements,
    statements,
    verify,
)

CHARTS: Final = ROOT / "charts"
IMAGES: Final = ("image", "trainerImage")
"""Values with the parts of an image's name."""
EMPTY: Final = re.compile(r'^  registry: ""$', re.MULTILINE)


def chart_names() -> list[str]:
    """Names of all charts."""
    return sorted(path.parent.name for path in CHARTS.glob("*/Chart.yaml"))


def package_charts(prefix: str, target: Path) -> Iterator[Path]:
    """Write each chart as an archive into the folder `target`, with images of the registry `prefix`.

    Raises:
        ImageError: the values name images in another form, or Helm failed.
    """
    for name in chart_names():
        with TemporaryDirectory() as folder:
            chart = Path(folder) / name
            shutil.copytree(CHARTS / name, chart)
            values = chart / "values.yaml"
            if values.exists():
                values.write_text(with_registry(values.read_text(), prefix))
            yield Path(run("helm", "package", chart, "--destination", target).rpartition(": ")[2])


def with_registry(values: str, prefix: str) -> str:
    """Values of a chart whose images are in the registry `prefix`; comments stay as they are."""
    before = yaml.safe_load(values) or {}
    after = EMPTY.sub(f"  registry: {prefix}", values)
    expected = {key: {**before[key], "registry": prefix} for key in IMAGES if key in before}
    if yaml.safe_load(after) != {**before, **expected}:
        raise ImageError("values.yaml names images in another form: change tools/release/publish.py")
    return after


FOLDER: Final = ROOT / "build" / "release"
LIST: Final = "release.json"
"""Name of the list in the folder of a release."""


def write_list(
    folder: Path, released: Mapping[Artifact, Sequence[str]], version: str, commit: str, public: str | None
) -> None:
    """Write the list of the artifacts to a folder.

    Args:
        folder: folder of the release.
        released: the predicate types of the statements about each artifact.
        version: version of the release.
        commit: commit of the release.
        public: public key in PEM form; None if another program signs the statements.
    """
    listed = [
        {
            "name": each.name,
            "repository": each.repository,
            "tags": each.tags,
            "digest": each.digest,
            "statements": predicate_types,
        }
        for each, predicate_types in released.items()
    ]
    document = {"version": version, "commit": commit, "publicKey": public, "artifacts": listed}
    (folder / LIST).write_text(json.dumps(document, indent=2) + "\n")


def tag_release(registry: Registry, folder: Path = FOLDER, *, is_trial: bool = False) -> list[Artifact]:
    """Add their tags to the listed artifacts, whose statements must all be in the registry.

    Signatures with the key of the release are verified. If another program has signed, that program verifies
    its signatures. Can be repeated. Returns the artifacts.

    Args:
        registry: where the artifacts are.
        folder: where the list is.
        is_trial: accept artifacts that nothing has signed, and tags that move from other artifacts.

    Raises:
        ImageError: the list or a statement is missing, or a tag exists.
    """
    file = folder / LIST
    document = _read_list(file)
    public: str | None = document["publicKey"]
    released = dict(_artifact(registry, each, file) for each in document["artifacts"])
    for artifact, predicate_types in released.items():
        if public is not None:
            verify(registry, artifact, predicate_types, public)
        elif not is_trial:
            require_statements(registry, artifact, predicate_types)
    for artifact in released:
        for tag in artifact.tags:
            present = registry.digest(f"{artifact.repository}:{tag}")
            if not is_trial and present not in {None, artifact.digest}:
                raise ImageError(
                    f"{artifact.repository}:{tag} exists ({present}): a version is never replaced"
                )
    for artifact in released:
        for tag in artifact.tags:
            registry.tag(artifact.reference, tag)
    return list(released)


def _read_list(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise ImageError(f"{file} does not exist: run `make release`")
    document: dict[str, Any] = json.loads(file.read_text())
    if "publicKey" not in document or not all(each.get("statements") for each in document["artifacts"]):
        raise ImageError(f"{file} does not name the statements of each artifact: run `make release` again")
    return document


def _artifact(registry: Registry, listed: Mapping[str, Any], file: Path) -> tuple[Artifact, Collection[str]]:
    """A listed artifact, and the predicate types of its statements."""
    artifact = Artifact(listed["name"], listed["repository"], tuple(listed["tags"]), listed["digest"])
    if not artifact.repository.startswith(f"{registry.prefix}/"):
        raise ImageError(f"{file} is of another IMAGE_REGISTRY: {artifact.repository}")
    return artifact, listed["statements"]


OPERATOR: Final = "finetune-operator"
TRAINER: Final = "finetune-trainer"

Staged = tuple[Artifact, tuple[str, str]]
"""An artifact on this machine, and where `Registry.copy` finds it."""


@dataclass(frozen=True)
class Release:
    """What to release, and where.

    Attributes:
        registry: where the artifacts go.
        variants: variants of the trainer image; the first one also has the tag without a variant.
        key: signs; None leaves the artifacts unsigned.
        builder: URI of what runs the build.
        is_trial: accept uncommitted changes, a base image without a digest, and a version that exists.
        folder: for statements, charts and the list of the artifacts; its files are deleted first.
    """

    registry: Registry
    variants: tuple[Variant, ...]
    key: SigningKey | None
    builder: str
    is_trial: bool = False
    folder: Path = FOLDER

    def publish(self) -> list[Artifact]:
        """Build everything, push it, and attach the signed statements. Nothing has a tag of the version yet.

        Writes statements, charts and a list of the artifacts to `folder`.

        Raises:
            ImageError: a build failed, the registry refuses something, or this is not a state to release; the
                message says what to do.
            subprocess.CalledProcessError: a tool failed; its message is on the terminal.
        """
        started = datetime.now(UTC)
        version = finetune_operator.__version__
        source = _source(is_trial=self.is_trial)
        buildah = Buildah()
        ensure(PROGRAMS)
        if not self.is_trial:
            require_pinned(base_image(buildah))
            self.require_new(version)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.iterdir():
            leftover.unlink()
        cache_directory().mkdir(parents=True, exist_ok=True)
        with (
            TemporaryDirectory(dir=cache_directory()) as folder,
            OciRegistry(Path(folder) / "charts") as local,
        ):
            images = self._images(version, buildah, Path(folder))
            staged = [*images, *self._charts(version, Registry(local.address))]
            for artifact, place in staged:
                self.registry.copy(place, artifact.repository)
        artifacts = [artifact for artifact, _ in staged]
        build = Build(source, version, self.builder, started, datetime.now(UTC), _pins())
        released = {artifact: self._attach(artifact, build) for artifact in artifacts}
        public = self.key.public if self.key else None
        if public is not None:
            (self.folder / "release.pub").write_text(public)
        write_list(self.folder, released, version, source.commit, public)
        return artifacts

    def require_new(self, version: str) -> None:
        """Refuse a version that the registry has."""
        for name in self._names(version):
            if digest := self.registry.digest(name):
                raise ImageError(
                    f"{name} exists ({digest}): raise project.version in pyproject.toml, then `make generate`"
                )

    def _names(self, version: str) -> Iterator[str]:
        """Names with the tags of this release."""
        prefix = self.registry.prefix
        if self.variants:
            yield f"{prefix}/{OPERATOR}:{version}"
        for variant in self.variants:
            yield from (f"{prefix}/{TRAINER}:{tag}" for tag in self._trainer_tags(version, variant))
        yield from (f"{prefix}/charts/{name}:{version}" for name in chart_names())

    def _trainer_tags(self, version: str, variant: Variant) -> tuple[str, ...]:
        return (f"{version}-{variant}", *((version,) if variant is self.variants[0] else ()))

    def _images(self, version: str, buildah: Buildah, folder: Path) -> list[Staged]:
        """Build the images, and write each to a folder of its own."""
        found: dict[str, Staged] = {}
        for variant in self.variants:
            built = build_complete(variant)
            print(*built.sizes, sep="\n", file=sys.stderr)
            for title, repository, image, tags in (
                (OPERATOR, OPERATOR, built.names.operator, (version,)),
                (f"{TRAINER}-{variant}", TRAINER, built.names.trainer, self._trainer_tags(version, variant)),
            ):
                if title not in found:
                    layout = folder / title
                    digest = buildah.save(image, layout)
                    target = f"{self.registry.prefix}/{repository}"
                    artifact = Artifact(title, target, tags, digest, bill_file(title), built.base)
                    found[title] = (artifact, ("--from-oci-layout", f"{layout}@{digest}"))
        return list(found.values())

    def _charts(self, version: str, staging: Registry) -> Iterator[Staged]:
        """Package the charts, and push them to a registry on this machine: Helm pushes by tag only."""
        for package in package_charts(self.registry.prefix, self.folder):
            staging.push_chart(package)
            name = package.name.removesuffix(f"-{version}.tgz")
            digest = staging.digest(f"{staging.prefix}/charts/{name}:{version}")
            if digest is None:
                raise ImageError(f"helm pushed no chart {name} {version}: change tools/release/publish.py")
            chart = Artifact(f"chart-{name}", f"{self.registry.prefix}/charts/{name}", (version,), digest)
            yield chart, ("--from-plain-http", f"{staging.prefix}/charts/{name}@{digest}")

    def _attach(self, artifact: Artifact, build: Build) -> list[str]:
        """Write the statements about an artifact; with a key, sign and attach them.

        Returns the predicate types of the statements.
        """
        found = statements(artifact, build)
        for name, statement in found.items():
            file = self.folder / f"{artifact.name}.{name}.json"
            file.write_text(json.dumps(statement))
            if self.key is None:
                continue
            bundle = self.folder / f"{artifact.name}.{name}.sigstore.json"
            bundle.write_text(self.key.sign(statement))
            annotations = {
                "dev.sigstore.bundle.content": "dsse-envelope",
                "dev.sigstore.bundle.predicateType": statement["predicateType"],
            }
            self.registry.attach(artifact.reference, bundle, BUNDLE, annotations)
        return [statement["predicateType"] for statement in found.values()]


def _source(*, is_trial: bool) -> SourceCommit:
    if _git("status", "--porcelain") and not is_trial:
        raise ImageError("the working tree has changes: commit them, so that the provenance names them")
    repository = os.environ.get("GITHUB_REPOSITORY")
    uri = f"git+{os.environ['GITHUB_SERVER_URL']}/{repository}" if repository else None
    return SourceCommit(_git("rev-parse", "HEAD"), uri)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def _pins() -> dict[str, str]:
    files: list[Path] = [ROOT / "constraints" / f"{name}.txt" for name in ("operator", "trainer")]
    return {f"constraints/{each.name}": hashlib.sha256(each.read_bytes()).hexdigest() for each in files}
