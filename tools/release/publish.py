"""Build the images and the charts, push them, and attach statements about them."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import finetune_operator
from tools.bootstrap.uv import ROOT
from tools.cluster.binaries import ensure
from tools.images.base import base_image, require_pinned
from tools.images.build import bill_file, build_complete
from tools.images.buildah import Buildah
from tools.images.errors import ImageError
from tools.images.tags import Variant
from tools.release.artifact import Artifact
from tools.release.charts import package_charts
from tools.release.registry import PROGRAMS, Registry
from tools.release.signing import BUNDLE, SigningKey
from tools.release.statements import Build, SourceCommit, statements

FOLDER: Final = ROOT / "build" / "release"
OPERATOR: Final = "finetune-operator"
TRAINER: Final = "finetune-trainer"


@dataclass(frozen=True)
class Release:
    """What to release, and where.

    Attributes:
        registry: where the artifacts go.
        variants: variants of the trainer image; the first one also has the tag without a variant.
        key: signs; None leaves the artifacts unsigned.
        builder: URI of what runs the build.
        is_trial: accept uncommitted changes, a base image without a digest, and a version that exists.
    """

    registry: Registry
    variants: tuple[Variant, ...]
    key: SigningKey | None
    builder: str
    is_trial: bool = False

    def publish(self) -> list[Artifact]:
        """Build and push everything. Writes statements, charts and a list of the artifacts to build/release.

        Raises:
            ImageError: a build failed, or this is not a state to release; the message says what to do.
            subprocess.CalledProcessError: a tool failed; its message is on the terminal.
        """
        started = datetime.now(UTC)
        version = finetune_operator.__version__
        source = _source(is_trial=self.is_trial)
        buildah = Buildah()
        ensure(PROGRAMS)
        if not self.is_trial:
            require_pinned(base_image(buildah))
            self._require_new(version)
        FOLDER.mkdir(parents=True, exist_ok=True)
        for leftover in FOLDER.iterdir():
            leftover.unlink()
        artifacts = [*self._images(version, buildah), *self._charts(version)]
        build = Build(source, version, self.builder, started, datetime.now(UTC), _pins())
        for artifact in artifacts:
            self._attach(artifact, build)
        self._write_list(artifacts, version, source)
        return artifacts

    def _require_new(self, version: str) -> None:
        """Refuse a version that the registry has."""
        name = f"{self.registry.prefix}/{OPERATOR}:{version}"
        try:
            digest = self.registry.digest(name)
        except ImageError:
            return
        raise ImageError(
            f"{name} exists ({digest}): raise project.version in pyproject.toml, then `make generate`"
        )

    def _images(self, version: str, buildah: Buildah) -> list[Artifact]:
        pushed: dict[str, Artifact] = {}
        for variant in self.variants:
            built = build_complete(variant)
            print(*built.sizes, sep="\n", file=sys.stderr)
            trainer = f"{TRAINER}-{variant}"
            tags = (f"{version}-{variant}", *((version,) if variant is self.variants[0] else ()))
            for title, repository, image, names in (
                (OPERATOR, OPERATOR, built.names.operator, (version,)),
                (trainer, TRAINER, built.names.trainer, tags),
            ):
                if title not in pushed:
                    target = f"{self.registry.prefix}/{repository}"
                    digest = buildah.push(image, f"{target}:{names[0]}")
                    for tag in names[1:]:
                        self.registry.tag(f"{target}@{digest}", tag)
                    pushed[title] = Artifact(title, target, names, digest, bill_file(title), built.base)
        return list(pushed.values())

    def _charts(self, version: str) -> list[Artifact]:
        charts = []
        for package in package_charts(self.registry.prefix, FOLDER):
            self.registry.push_chart(package)
            name = package.name.removesuffix(f"-{version}.tgz")
            repository = f"{self.registry.prefix}/charts/{name}"
            digest = self.registry.digest(f"{repository}:{version}")
            charts.append(Artifact(f"chart-{name}", repository, (version,), digest))
        return charts

    def _attach(self, artifact: Artifact, build: Build) -> None:
        """Write the statements about an artifact; with a key, sign and attach them."""
        for name, statement in statements(artifact, build).items():
            file = FOLDER / f"{artifact.name}.{name}.json"
            file.write_text(json.dumps(statement))
            if self.key is None:
                continue
            bundle = FOLDER / f"{artifact.name}.{name}.sigstore.json"
            bundle.write_text(self.key.sign(statement))
            annotations = {
                "dev.sigstore.bundle.content": "dsse-envelope",
                "dev.sigstore.bundle.predicateType": statement["predicateType"],
            }
            self.registry.attach(artifact.reference, bundle, BUNDLE, annotations)

    def _write_list(self, artifacts: list[Artifact], version: str, source: SourceCommit) -> None:
        if self.key is not None:
            (FOLDER / "release.pub").write_text(self.key.public)
        listed = [
            {"name": each.name, "repository": each.repository, "tags": each.tags, "digest": each.digest}
            for each in artifacts
        ]
        document = {"version": version, "commit": source.commit, "artifacts": listed}
        (FOLDER / "release.json").write_text(json.dumps(document, indent=2) + "\n")


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
