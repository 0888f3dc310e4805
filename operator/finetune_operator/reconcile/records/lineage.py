# SPDX-License-Identifier: Apache-2.0
"""What a Checkpoint was made by."""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.reconcile.inputs.snapshot import Snapshot


def run_of(checkpoint: Checkpoint, snapshot: Snapshot) -> FineTuneJob | None:
    """The FineTuneJob that made the Checkpoint, if it still exists."""
    record = checkpoint.spec.lineage.job
    job = snapshot.finetunejobs.get(record.name)
    return job if job is not None and job.uid == record.uid else None
