# SPDX-License-Identifier: Apache-2.0
"""The store: content-addressed artifacts, and folders of runs, on a volume or in a bucket.

Layout of every store: `datasets/<digits>/`, `models/<digits>/`, `checkpoints/<digits>/` and
`runs/<run>/<stage>/`. An artifact is complete once it has its `manifest.json`, which is written last. What
was derived from an artifact is in `derived/<digits>/` of its folder, and is removed with it.
"""

from finetune_trainer.store.base import ArtifactKind, DerivedRef, RunFolder, Store
from finetune_trainer.store.opening import open_store

__all__ = ["ArtifactKind", "DerivedRef", "RunFolder", "Store", "open_store"]
