# SPDX-License-Identifier: Apache-2.0
"""Build the images and the charts, push them without tags, and attach statements about them."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import finetune_operator
from tools.bootstrap.uv import ROOT, cache_directory
from tools.cluster.toolchain import ensure
from tools.images.base import base_image, require_pinned
from tools.images.build import bill_file, build_complete
from tools.images.buildah import Buildah, ImageError
from tools.images.tags import Variant
from tools.release.artifact import Artifact
from tools.release.charts import chart_names, package_charts
from tools.release.listing import FOLDER, write_list
from tools.release.ociregistry import OciRegistry
from tools.release.registry import PROGRAMS, Registry
from tools.release.signing import BUNDLE, SigningKey
from tools.release.statements import Build, SourceCommit, statements

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
