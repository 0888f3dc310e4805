# SPDX-License-Identifier: Apache-2.0
"""The store: content-addressed artifacts, and folders of runs, on a volume or in a bucket.

Layout of every store: `datasets/<digits>/`, `models/<digits>/`, `checkpoints/<digits>/` and
`runs/<run>/<stage>/`. An artifact is complete once it has its `manifest.json`, which is written last. What
was derived from an artifact is in `derived/<digits>/` of its folder, and is removed with it.
"""

from finetune_trainer.store.base import Store
from finetune_trainer.store.keys import ArtifactKind, DerivedRef
from finetune_trainer.store.opening import open_store
from finetune_trainer.store.runfolder import RunFolder

__all__ = ["ArtifactKind", "DerivedRef", "RunFolder", "Store", "open_store"]
