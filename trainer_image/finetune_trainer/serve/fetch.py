"""Copy artifacts from the store for a serving pod. A folder gets its final name only after verification."""

import logging
from pathlib import Path

from finetune_trainer.contract.configs.serve import FetchConfig, FetchItem
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.manifest import MANIFEST_NAME, Manifest
from finetune_trainer.model.adapter import ADAPTER_CONFIG, check_base_model
from finetune_trainer.model.bundle import CHAT_TEMPLATE
from finetune_trainer.model.missingbundle import BundleUnknown, missing_bundle
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import open_store
from finetune_trainer.store.copying import copy_artifact
from finetune_trainer.store.failures import verify_files, writable

logger = logging.getLogger(__name__)


def run(config: FetchConfig) -> None:
    """Copy each item's folder to the destination and verify each file on the way.

    Keeps folders that are already complete, so that a restarted pod fetches nothing twice. Adds chat template
    and generation config to adapters of older releases, which were published without them.
    Raises StageFailure: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT naming the file, STORE_UNAVAILABLE,
    BASE_MODEL_MISMATCH, INTERNAL if the destination is not writable.
    """
    store = open_store(config.store)
    adapters: list[Path] = []
    for item in config.items:
        _check_folder(item)
        manifest = store.manifest(item.artifact)
        target = Path(config.destination, item.folder)
        if {ADAPTER_CONFIG, CHAT_TEMPLATE} & {file.path for file in manifest.files} == {ADAPTER_CONFIG}:
            adapters.append(target)
        with writable(target):
            if _is_complete(target, manifest):
                logger.info("%s is already complete", target)
                continue
        copy_artifact(store, item.artifact, target)
    base_model = next((item for item in config.items if item.artifact.kind == "models"), None)
    if base_model is not None:
        for item in config.items:
            check_base_model(Path(config.destination, item.folder), base_model.artifact.digest)
        _add_bundle(adapters, Path(config.destination, base_model.folder))


def _add_bundle(adapters: list[Path], base: Path) -> None:
    """Write what serving needs next to each of the adapters, whose artifacts do not have it."""
    if not adapters:
        return
    try:
        bundle = missing_bundle(base)
    except (BundleUnknown, OSError, ValueError) as error:
        logger.warning(
            "%s: an older release published this adapter without a generation config, and none can be made:"
            " %s; only the Transformers engine serves it",
            ", ".join(adapter.name for adapter in adapters),
            error,
        )
        return
    for adapter in adapters:
        with writable(adapter):
            bundle.write_for_serving(adapter)


def _is_complete(folder: Path, manifest: Manifest) -> bool:
    path = folder / MANIFEST_NAME
    if not path.exists() or path.read_bytes() != manifest.to_bytes():
        return False
    try:
        verify_files(folder, manifest)
    except StageFailure as failure:
        logger.warning("%s; fetching it again", failure.message)
        return False
    return True


def _check_folder(item: FetchItem) -> None:
    if Path(item.folder).name != item.folder or item.folder in ("", ".."):
        raise StageFailure(
            FailureReason.INVALID_CONFIG, f"items.folder: {item.folder!r} is not a plain folder name"
        )
