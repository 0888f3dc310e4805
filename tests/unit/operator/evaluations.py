# SPDX-License-Identifier: Apache-2.0
"""An Evaluation of a run's Checkpoint on a Dataset of its own, for the tests of its reconciler."""

from typing import Any, Final

from finetune_operator.plan import Manifest
from finetune_trainer.contract.results import EvaluateResult, Score, StageResult
from tests.unit.operator.memorycluster import MemoryCluster
from tests.unit.operator.runobjects import CHECKPOINT, WEIGHTS, dataset, digest, prepared
from tests.unit.operator.runsteps import ended

EVALUATION, EVALUATION_UID = "last-month", "e0000000-0000-4000-8000-000000000001"
QUESTIONS, QUESTIONS_UID = "questions", "d0000000-0000-4000-8000-000000000002"
ASKED: Final = digest("a")
"""Digest of the rows to evaluate on."""
QUESTIONS_VERSION: Final = f"{QUESTIONS}-{'a' * 12}"
SECOND, SECOND_WEIGHTS = "answers-1b2c3-80-eeeeeeee", digest("e")


def questions() -> Manifest:
    manifest = dataset()
    return {**manifest, "metadata": {"name": QUESTIONS, "uid": QUESTIONS_UID}}


def evaluation(name: str = EVALUATION, uid: str = EVALUATION_UID, **spec: Any) -> Manifest:
    """An Evaluation of the run's Checkpoint with a gate, without the fields that are None."""
    fields: Manifest = {
        "checkpoints": [CHECKPOINT],
        "dataset": {"ref": {"name": QUESTIONS}},
        "gates": [{"metric": "exact_match", "min": 0.8}],
        **spec,
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "Evaluation",
        "metadata": {"name": name, "uid": uid},
        "spec": {key: value for key, value in fields.items() if value is not None},
    }


def trained_cluster(**run: Any) -> MemoryCluster:
    """A cluster with the promoted Checkpoint of an ended run, and prepared questions."""
    cluster = ended(**run)
    cluster.add(questions())
    cluster.settle()
    cluster.succeed("prepare", prepared(f"{QUESTIONS_UID}-1", dataset=ASKED))
    cluster.settle()
    return cluster


def measured(tuned: float = 0.9, number: int = 0, uid: str = EVALUATION_UID, **result: Any) -> StageResult:
    """The result for the Checkpoint of this number."""
    fields: dict[str, Any] = {
        "checkpoint": WEIGHTS,
        "split": "test",
        "scores": (
            Score(metric="exact_match", subject="Tuned", value=tuned, rows=24),
            Score(metric="exact_match", subject="Base", value=0.1, rows=24),
        ),
        **result,
    }
    return StageResult(
        stage="evaluate", run=f"{uid}-{number}", outcome="Succeeded", evaluate=EvaluateResult(**fields)
    )


def evaluating(run: dict[str, Any] | None = None, **spec: Any) -> MemoryCluster:
    """A cluster in which the Evaluation's first Job exists."""
    cluster = trained_cluster(**run or {})
    cluster.add(evaluation(**spec))
    cluster.settle()
    return cluster


def evaluated_cluster(tuned: float = 0.9, **spec: Any) -> MemoryCluster:
    """A cluster in which an Evaluation of one Checkpoint has ended."""
    cluster = evaluating(**spec)
    cluster.start("evaluate", after=5)
    cluster.succeed("evaluate", measured(tuned), after=30)
    cluster.settle()
    return cluster


def entries(cluster: MemoryCluster, checkpoint: str = CHECKPOINT) -> list[Manifest]:
    """Scores on the Checkpoint's status."""
    found: list[Manifest] = cluster.objects["Checkpoint", checkpoint]["status"]["evaluations"]
    return found


def second_checkpoint(cluster: MemoryCluster, model: str = "answers") -> None:
    """Weights of all parameters from another base model, whose run does not exist."""
    first = cluster.objects["Checkpoint", CHECKPOINT]
    lineage = {
        **{name: value for name, value in first["spec"]["lineage"].items() if name != "adapter"},
        "baseModel": {"uri": "pvc://models/llama", "digest": digest("9")},
        "method": {"objective": "SFT", "type": "Full"},
        "job": {"name": "gone", "uid": "gone"},
    }
    spec = {
        **first["spec"],
        "modelLine": model,
        "digest": SECOND_WEIGHTS,
        "type": "Full",
        "uri": f"pvc://artifacts/checkpoints/{'e' * 64}",
        "lineage": lineage,
    }
    cluster.add(
        {"apiVersion": first["apiVersion"], "kind": "Checkpoint", "metadata": {"name": SECOND}, "spec": spec}
    )
