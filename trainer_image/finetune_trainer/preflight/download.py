# SPDX-License-Identifier: Apache-2.0
"""Put a base model into the store for an endpoint that serves it without any run."""

import logging

from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.serving import DownloadConfig, StoredModel
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.manifest import Manifest
from finetune_trainer.preflight.basemodelfetch import store_model
from finetune_trainer.preflight.modelfiles import errors_named, model_files
from finetune_trainer.preflight.modelsource import MEBIBYTE, readable_model
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.runtime.reporter import Reporter
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.stage.context import StageContext
from finetune_trainer.stage.meter import StageMeter
from finetune_trainer.store import open_store

logger = logging.getLogger(__name__)


def run(config: DownloadConfig) -> StoredModel:
    """Store the base model unless the store has it. If several pods need the same model, one downloads it.

    Raises StageFailure: BASE_MODEL_NOT_FOUND, BASE_MODEL_INVALID, BASE_MODEL_DIGEST_MISMATCH,
    STORE_UNAVAILABLE, and for a remote model what `RemoteSource` raises.
    """
    uri, expected = config.base_model_uri, config.base_model_digest
    store = open_store(config.store)
    if expected is not None and store.has(ArtifactRef(kind="models", digest=expected)):
        logger.info("the store has the base model %s", expected)
        return StoredModel(digest=expected)
    # The reporter has no target: an endpoint shows no progress of its Jobs.
    context = StageContext(store, Reporter(None, config.owner, "preflight"), Stop())
    with errors_named(uri), readable_model(config, context) as found:
        files = model_files(found.folder, uri)
        # Each byte is hashed, copied, and published by the store.
        total = 3 * sum((found.folder / name).stat().st_size for name in files)
        meter = StageMeter(context, total, MEBIBYTE)
        if found.stored is None:
            meter.begin("hashing the base model")
            manifest = Manifest.of(found.folder, files, meter.add)
        else:
            manifest = store.manifest(found.stored)
            meter.add(manifest.total_bytes)
        if expected not in {None, manifest.digest}:
            raise StageFailure(
                FailureReason.BASE_MODEL_DIGEST_MISMATCH,
                f"baseModel {uri}: its digest is {manifest.digest}, but spec.baseModel.digest requires"
                f" {expected}; restore the files, or set the new digest",
            )
        store_model(uri, found, manifest, context, meter)
    return StoredModel(digest=manifest.digest)
