# SPDX-License-Identifier: Apache-2.0
"""The models that an endpoint serves: names, digests, records of their probes, and the check of these."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from finetune_trainer.contract.serving import ServeConfig
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.manifest import MANIFEST_NAME, digest_of
from finetune_trainer.model.probe_record import (
    PROBE_FILE,
    UNMEASURED_TOLERANCE,
    Computation,
    ProbeRecord,
    describe_mismatch,
    find_tolerance,
    read_record,
)
from finetune_trainer.runtime.termination import StageFailure

BASE_NAME: Final = "base"


def served_names(config: ServeConfig) -> tuple[str, ...]:
    """Return `base` and the adapters, or the one whole model that is served alone.

    Raises StageFailure (INVALID_CONFIG) for names that conflict.
    """
    names = [model.name for model in config.models]
    for name in names:
        if names.count(name) > 1:
            raise _invalid(f"{name!r} occurs twice: give each model its own name")
    if all(model.type == "Adapter" for model in config.models):
        if BASE_NAME in names:
            raise _invalid(f"{BASE_NAME!r} is the name of the base model: give the model another name")
        return (BASE_NAME, *names)
    if len(names) > 1:
        raise _invalid("a model of type Full replaces the base model: serve it alone")
    return tuple(names)


def _invalid(message: str) -> StageFailure:
    return StageFailure(FailureReason.INVALID_CONFIG, f"models: {message}")


class ServerIdentity(NamedTuple):
    """Name, digest and type of a served model.

    The digest is that of the fetched folder, or empty without a manifest. The type of the base model is Base.
    """

    name: str
    digest: str
    type: str


def read_identities(config: ServeConfig) -> Iterator[ServerIdentity]:
    """Yield the identity of each served name. Raises StageFailure for names that conflict."""
    known = {model.name: (model.folder, str(model.type)) for model in config.models}
    for name in served_names(config):
        folder, type_ = (config.base_folder, "Base") if name == BASE_NAME else known[name]
        yield ServerIdentity(name, _digest(Path(config.models_path, folder, MANIFEST_NAME)), type_)


def _digest(manifest: Path) -> str:
    return digest_of(manifest.read_bytes()) if manifest.is_file() else ""


_PROBES: Final = ".probes"

logger = logging.getLogger(__name__)


def probe_folder(models: Path, folder: str) -> Path:
    """Folder with the record of the probe of the model in `folder`. Absent if the model has none."""
    return models / _PROBES / folder


def probe_record(models: Path, folder: str) -> ProbeRecord | None:
    """What the model in `folder` predicted when it was published; None if that is not known."""
    path = probe_folder(models, folder) / PROBE_FILE
    if not path.is_file():
        logger.info("%s has no record of a probe", folder)
        return None
    return read_record(path.parent, path)


REMEDY: Final = "Check that base model and Checkpoint belong together, or train the model again"
"""What to do if a model differs from its record."""


def make_no_effect_failure(name: str) -> StageFailure:
    """The failure of an adapter that predicts exactly what its base model does."""
    return StageFailure(
        FailureReason.ARTIFACT_CORRUPT,
        f"model {name!r}: its adapter changes nothing: all logits equal those of the base model. Train it"
        " again with a higher hyperparameters.learningRate, or pin another Checkpoint",
    )


def require_probe(
    name: str, record: ProbeRecord, computation: Computation, version: str, difference: float
) -> None:
    """Check how much the model of this name differs from its record. `version`: that of the engine.

    Raises StageFailure (ARTIFACT_CORRUPT) above a tolerance that was measured; above another one it warns.
    """
    tolerance = find_tolerance(record, computation)
    if difference <= (UNMEASURED_TOLERANCE if tolerance is None else tolerance):
        logger.info("model %s differs from its probe by up to %.3g nats", name, difference)
        return
    message = f"model {name!r}: {describe_mismatch(record, computation, version, difference)}"
    if tolerance is not None:
        raise StageFailure(FailureReason.ARTIFACT_CORRUPT, f"{message}. {REMEDY}")
    logger.warning("%s. It is served: no tolerance was measured for this combination", message)
