"""The store: artifacts named by their content, and the runs' own folders, on a volume or in a bucket.

Layout, the same everywhere: `datasets/<digits>/`, `models/<digits>/`, `checkpoints/<digits>/` and
`runs/<run>/<stage>/`. An artifact is complete when its `manifest.json` is there, which is written last.
"""

from finetune_trainer.store.base import ArtifactKind, RunFolder, Store
from finetune_trainer.store.opening import open_store

__all__ = ["ArtifactKind", "RunFolder", "Store", "open_store"]
