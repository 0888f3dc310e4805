# SPDX-License-Identifier: Apache-2.0
"""Digest and type of each served model, for the metrics."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from finetune_trainer.contract.serving import ServeConfig
from finetune_trainer.manifest import MANIFEST_NAME, digest_of
from finetune_trainer.serve.names import BASE_NAME, served_names


class ServerIdentity(NamedTuple):
    """Name, digest and type of a served model.

    The digest is that of the fetched folder, or empty without a manifest. The type of the base model is Base.
    """

    name: str
    digest: str
    type: str


def identities(config: ServeConfig) -> Iterator[ServerIdentity]:
    """Yield the identity of each served name. Raises StageFailure for names that conflict."""
    known = {model.name: (model.folder, str(model.type)) for model in config.models}
    for name in served_names(config):
        folder, type_ = (config.base_folder, "Base") if name == BASE_NAME else known[name]
        yield ServerIdentity(name, _digest(Path(config.models_path, folder, MANIFEST_NAME)), type_)


def _digest(manifest: Path) -> str:
    return digest_of(manifest.read_bytes()) if manifest.is_file() else ""
