# SPDX-License-Identifier: Apache-2.0
"""A store with the tiny model and a few rows, and the stages that need a model."""

import functools
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import EvaluateConfig, PreflightConfig, StageConfig, TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters, RequestedHyperparameters
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef, Owner, StoreConfig
from finetune_trainer.contract.results import (
    CheckpointResult,
    EvaluateResult,
    PreflightResult,
    Progress,
    TrainResult,
)
from finetune_trainer.evaluate import stage as evaluate
from finetune_trainer.preflight import stage as preflight
from finetune_trainer.rows import Row
from finetune_trainer.runtime.progress import Reporter
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import Store, open_store
from finetune_trainer.tokens.chat_template import load_tokenizer
from finetune_trainer.train import stage as train
from finetune_trainer.train.batches import run_steps
from tests.methods import requested
from tools.models import tiny

OWNER: Final = Owner(kind="FineTuneJob", namespace="team", name="routing", uid="1f1f")
RUN: Final = "1f1f"
URI: Final = "pvc://models/tiny"
OF_ONE_RUN: Final = {
    "tokens_per_second": None,
    "device_memory_bytes": None,
    "lost_device_seconds": 0,
    "repeats": (),
    "report_uri": None,
}
"""Fields that differ between any two runs."""

DIVIDED_BY: Final = frozenset({"batch_size", "max_batch_rows", "max_batch_tokens"})
"""Settings by which a test chooses how a step is divided."""

TEAMS: Final = ("billing", "sales", "support", "shipping")
ROWS: Final = tuple(
    Row.pair(f"{subject} {verb}?", TEAMS[index % len(TEAMS)])
    for index, (verb, subject) in enumerate(
        (verb, subject)
        for verb in ("late", "lost", "paid")
        for subject in ("order", "invoice", "card", "box")
    )
)
"""Twelve short questions, each with the name of a team."""

UNWANTED: Final = "nobody knows"
PAIRS: Final = tuple(replace(row, form="Preference", rejected=UNWANTED) for row in ROWS)
"""The same questions, each with the correct answer and an unwanted one."""
JUDGED: Final = tuple(
    replace(Row.pair(row.messages[0].content, answer), form="KTO", label=answer != UNWANTED)
    for row in ROWS
    for answer in (row.output, UNWANTED)
)[: len(ROWS)]
"""Half of the questions, each with both answers, and each answer with its label."""


@functools.cache
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(tiny())


@dataclass
class Sheet(Reporter):
    """Keeps all progress; sets `stop` when a step is reported that is in `stop_at`."""

    stop_at: frozenset[int] = frozenset()
    stop: Stop = field(default_factory=Stop)
    seen: list[Progress] = field(default_factory=list)

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)
        if progress.step in self.stop_at:
            self.stop.set()


@dataclass(frozen=True)
class Workbench:
    """The folders of one test, and the stages in them."""

    root: Path

    @property
    def store_config(self) -> StoreConfig:
        return StoreConfig(uri="pvc://artifacts", path=str(self.root / "store"))

    @property
    def store(self) -> Store:
        (self.root / "store").mkdir(exist_ok=True)
        return open_store(self.store_config)

    def context(self, sheet: Sheet | None = None) -> StageContext:
        sheet = sheet or Sheet()
        return StageContext(store=self.store, reporter=sheet, stop=sheet.stop)

    def model(self, source: Path | None = None) -> Digest:
        """Publish a folder as a base model; by default the tiny model."""
        with self.store.staging() as staging:
            shutil.copytree(source or tiny(), staging, dirs_exist_ok=True)
            return self.store.publish("models", staging)

    def dataset(
        self, train: Sequence[Row] = ROWS, validation: Sequence[Row] = (), test: Sequence[Row] = ()
    ) -> Digest:
        with self.store.staging() as staging:
            for split, rows in (("train", train), ("validation", validation), ("test", test)):
                (staging / f"{split}.jsonl").write_text("".join(f"{row.to_line()}\n" for row in rows))
            return self.store.publish("datasets", staging)

    def preflight_config(self, source: Path, dataset: Digest, **settings: Any) -> PreflightConfig:
        wanted = settings.pop("hyperparameters", {})
        if isinstance(method := settings.get("method"), Method):
            settings["method"] = requested(method)
        return PreflightConfig(
            **self._common(),
            base_model_uri=URI,
            base_model_path=str(source),
            dataset=dataset,
            hyperparameters=RequestedHyperparameters(**wanted),
            **settings,
        )

    def preflight(
        self, source: Path | None = None, dataset: Digest | None = None, **settings: Any
    ) -> PreflightResult:
        return self.run_preflight(
            self.preflight_config(source or tiny(), dataset or self.dataset(), **settings)
        )

    def run_preflight(self, config: PreflightConfig) -> PreflightResult:
        return preflight.run(config, self.context())

    def preflight_failure(
        self, source: Path | None = None, dataset: Digest | None = None, **settings: Any
    ) -> StageFailure:
        with pytest.raises(StageFailure) as caught:
            self.preflight(source, dataset, **settings)
        return caught.value

    def train_config(
        self,
        base_model: Digest | None = None,
        dataset: Digest | None = None,
        *,
        method: Method | None = None,
        rows: int = len(ROWS),
        keep: int = 0,
        keep_steps: tuple[int, ...] = (),
        **settings: Any,
    ) -> TrainConfig:
        """A short run with dropout and divided steps: 2 epochs of 3 steps, each of 2 batches of 2 rows."""
        parts = {"max_batch_rows": 2} if settings.keys().isdisjoint(DIVIDED_BY) else {}
        chosen: dict[str, Any] = {
            "epochs": 2,
            "learning_rate": 5e-3,
            "batch_size": 4,
            "max_sequence_length": 64,
            "seed": 7,
            "save_every_steps": 2,
            "warmup_ratio": 0.05,
            "scheduler": "Linear",
            "weight_decay": 0,
            **parts,
        } | settings
        steps = run_steps(rows, chosen["batch_size"], chosen["epochs"], chosen.get("max_steps"))
        return TrainConfig(
            **self._common(),
            base_model=base_model or self.model(),
            dataset=dataset or self.dataset(),
            method=method or Method(lora=LoRA(r=4, alpha=8, dropout=0.1)),
            hyperparameters=Hyperparameters(total_steps=steps, **chosen),
            keep=keep,
            keep_steps=keep_steps,
        )

    def train(self, config: TrainConfig, sheet: Sheet | None = None) -> TrainResult:
        """The result without measured values and without the name of the run."""
        return self.train_whole(config, sheet).model_copy(update=OF_ONE_RUN)

    def train_whole(self, config: TrainConfig, sheet: Sheet | None = None) -> TrainResult:
        return train.run(config, self.context(sheet))

    def train_failure(self, config: TrainConfig) -> StageFailure:
        with pytest.raises(StageFailure) as caught:
            self.train(config)
        return caught.value

    def checkpoint(self, result: CheckpointResult) -> Path:
        return self.store.artifact(ArtifactRef(kind="checkpoints", digest=result.digest), verify=True)

    def evaluate_config(
        self, base_model: Digest, dataset: Digest, result: CheckpointResult, **settings: Any
    ) -> EvaluateConfig:
        return EvaluateConfig(
            **self._common(),
            base_model=base_model,
            dataset=dataset,
            checkpoint=result.digest,
            checkpoint_type=result.type,
            **{"max_sequence_length": 64, "training_dataset": dataset, **settings},
        )

    def evaluate(
        self,
        base_model: Digest,
        dataset: Digest,
        result: CheckpointResult,
        *,
        sheet: Sheet | None = None,
        **settings: Any,
    ) -> EvaluateResult:
        """The result of a new run."""
        config = self.evaluate_config(base_model, dataset, result, **settings)
        return self.run_evaluate(config.model_copy(update={"run": uuid.uuid4().hex}), sheet)

    def run_evaluate(self, config: EvaluateConfig, sheet: Sheet | None = None) -> EvaluateResult:
        return evaluate.run(config, self.context(sheet))

    def states(self, config: StageConfig) -> list[str]:
        """Names of the resume states of a run."""
        return sorted(self.store.run_folder(config.run, "train").names("state"))

    def _common(self) -> dict[str, Any]:
        return {"owner": OWNER, "run": RUN, "store": self.store_config}


class Undisturbed:
    """Results of uninterrupted runs, for comparison; equal runs are trained once.

    Each is trained in its own store, with the artifacts of its config.
    """

    def __init__(self, new_folder: Callable[[], Path]) -> None:
        self._new_folder = new_folder
        self._results: dict[str, TrainResult] = {}

    def __call__(self, config: TrainConfig) -> TrainResult:
        key = config.model_copy(update={"store": StoreConfig(uri="", path="")}).to_json()
        if key not in self._results:
            bench = Workbench(self._new_folder())
            for kind in ("models", "datasets", "checkpoints"):
                artifacts = Path(config.store.path) / kind
                if artifacts.exists():
                    shutil.copytree(artifacts, Path(bench.store_config.path) / kind)
            self._results[key] = bench.train(config.model_copy(update={"store": bench.store_config}))
        return self._results[key]


def elsewhere(bench: Workbench, name: str) -> Workbench:
    """A bench of the same kind with its own store."""
    root = bench.root / name
    root.mkdir()
    return Workbench(root)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (path,) = folder.glob("*.safetensors")
    return load_file(path)
