# SPDX-License-Identifier: Apache-2.0
"""Copies of one completed run and its Checkpoint."""

import json
from collections.abc import Iterator
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.manifests.labels import RECORDED_RUN
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.finetunejob.identity import mark
from finetune_operator.reconcile.model_lines import CheckpointIndex, decide_promotion

SERVER_FIELDS: Final = ("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields")


class Copies:
    """Makes numbered copies of a run and a Checkpoint."""

    def __init__(self, job: Manifest, checkpoint: Manifest) -> None:
        self._job = json.dumps(_made_by_user(job))
        self._checkpoint = json.dumps(_made_by_user(checkpoint))
        self._names = (job["metadata"]["name"], checkpoint["metadata"]["name"], job["spec"]["modelLine"])
        self._digest = checkpoint["spec"]["digest"]

    def job(self, number: int, model: str) -> Manifest:
        """Copy number `number` of the run; equal numbers give equal copies."""
        copy = self._copy(self._job, number, model)
        known = {**copy, "metadata": {**copy["metadata"], "uid": "of-the-original"}}
        copy["metadata"]["annotations"] = {RECORDED_RUN: mark(FineTuneJob.model_validate(known))}
        return copy

    def checkpoints(self, number: int, model: str, uid: str) -> Iterator[Manifest]:
        """The promoted Checkpoint of the run with this uid, and one that is not promoted."""
        for which in ("best", "other"):
            copy = self._copy(self._checkpoint, number, model)
            copy["spec"]["lineage"]["job"]["uid"] = uid
            if which == "other":
                copy["metadata"]["name"] = f"run-{number:05d}-20-other"
                copy["spec"].update(step=20, digest=_digest(number, which))
                _withdraw_promotion(copy, self._copy(self._job, number, model))
            yield copy

    def _copy(self, text: str, number: int, model: str) -> Manifest:
        job, checkpoint, line = self._names
        # The Checkpoint's name begins with the run's.
        for old, new in (
            (checkpoint, checkpoint_name(number)),
            (f'"{job}"', f'"run-{number:05d}"'),
            (f'"{line}"', f'"{model}"'),
            (self._digest, _digest(number, "best")),
            (self._digest.removeprefix("sha256:"), _digest(number, "best").removeprefix("sha256:")),
        ):
            text = text.replace(old, new)
        copy: Manifest = json.loads(text)
        return copy


def _withdraw_promotion(checkpoint: Manifest, job: Manifest) -> None:
    """Write the status of a Checkpoint that its run did not promote."""
    status = checkpoint["status"]
    for field in ("promotedAt", "evaluations", "display"):
        status.pop(field, None)
    run = FineTuneJob.model_validate(job)
    decision = decide_promotion(Checkpoint.model_validate(checkpoint), run, CheckpointIndex())
    condition = next(each for each in status["conditions"] if each["type"] == "Promoted")
    condition.update(status="False", reason=str(decision.reason), message=decision.message)


def _made_by_user(obj: Manifest) -> Manifest:
    metadata = {key: value for key, value in obj["metadata"].items() if key not in SERVER_FIELDS}
    return {**obj, "metadata": metadata}


def checkpoint_name(number: int) -> str:
    """Name of the promoted Checkpoint of copy `number`."""
    return f"run-{number:05d}-40-best"


def _digest(number: int, which: str) -> str:
    return f"sha256:{number:032x}{which.encode().hex():0>32}"
