"""The store: content-addressed artifacts, and folders of runs, on a volume or in a bucket.

Layout of every store: `datasets/<digits>/`, `models/<digits>/`, `checkpoints/<digits>/` and
`runs/<run>/<stage>/`. An artifact is complete once it has its `manifest.json`, which is written last.
"""

from finetune_trainer.store.base import ArtifactKind, RunFolder, Store
from finetune_trainer.store.opening import open_store

__all__ = ["ArtifactKind", "RunFolder", "Store", "open_store"]
