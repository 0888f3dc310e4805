# SPDX-License-Identifier: Apache-2.0
"""The folders of a step, its models and rows, and the product's stages on them."""

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from finetune_trainer.contract.accelerators import CARDS, DeviceFacts, find_card
from finetune_trainer.contract.configs import EvaluateConfig, PreflightConfig, StageConfig, TrainConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.hyperparameters import RequestedHyperparameters
from finetune_trainer.contract.method import LABELLED, OBJECTIVES, PAIRS, Method, Sharding
from finetune_trainer.contract.references import Owner, StoreConfig
from finetune_trainer.contract.results import PreflightResult, StageResult, TrainResult
from finetune_trainer.rows import Row
from finetune_trainer.store import Store, open_store
from tests.gpu.errors import GPUCheckFailed
from tests.gpu.shapes import make_model
from tests.gpu.stage_process import TIMES_ENV
from tests.methods import requested
from tools.models import tiny
from tools.models.tiny import CORPUS

OWNER: Final = Owner(kind="FineTuneJob", namespace="gpu", name="smoke", uid="smoke")
GPUFigures = dict[str, float | int | str]
"""What a step measured, with the unit in the name."""
BAD_ANSWER: Final = "nobody knows, "
STAGE_MODULE: Final = "tests.gpu.stage_process"
REHEARSED_STEPS: Final = 6
RESULT: Final = "termination message: "
"""What a trainer process outside of a pod logs before its result."""


REHEARSED_CARD: Final = "NVIDIA-H100-80GB-HBM3"
"""The card whose facts a rehearsal gives to preflight."""


def device_facts(device: str) -> DeviceFacts:
    """What a ComputeProfile would state about the GPU: the name of a known card is its node label.

    For the device of a rehearsal: the facts of REHEARSED_CARD.
    """
    if device != "cuda":
        rehearsed = CARDS[REHEARSED_CARD]
        return DeviceFacts(
            product=REHEARSED_CARD,
            memory_bytes=rehearsed.memory_bytes,
            peak_teraflops=rehearsed.peak_teraflops,
        )
    import torch

    properties = torch.cuda.get_device_properties(0)
    product = properties.name.replace(" ", "-")
    card = find_card(product)
    return DeviceFacts(
        product=product,
        memory_bytes=card.memory_bytes if card is not None else properties.total_memory,
        peak_teraflops=card.peak_teraflops if card is not None else None,
    )


@dataclass(frozen=True)
class Scene:
    """One step's surroundings."""

    folder: Path
    device: str
    """`cuda`, or `cpu` for a rehearsal."""
    rehearsal: bool
    adapted: tuple[str, ...] = ()
    """What the steps do differently with the packages of this machine."""

    def size(self, name: str) -> str:
        """The model to use: `name`, or the tiny one in a rehearsal."""
        return "tiny" if self.rehearsal else name

    def steps(self, wanted: int) -> int:
        """The number of optimizer steps: as wanted, or few in a rehearsal. Rows have their real lengths."""
        return min(wanted, REHEARSED_STEPS) if self.rehearsal else wanted

    @property
    def store_config(self) -> StoreConfig:
        return StoreConfig(uri="pvc://gpu", path=str(self.folder.parent / "store"))

    @property
    def store(self) -> Store:
        """The store of all steps, so that a model is copied into it once."""
        (self.folder.parent / "store").mkdir(parents=True, exist_ok=True)
        return open_store(self.store_config)

    def model(self, name: str) -> Path:
        """The folder of a model, which is made once for all steps."""
        folder = self.folder.parent / "models" / name
        if not folder.exists():
            part = folder.with_suffix(".part")
            part.mkdir(parents=True, exist_ok=True)
            make_model(name, part, self.device)
            part.rename(folder)
        return folder

    def dataset(
        self, method: Method, rows: int, tokens: int, held_out: int = 0, shortest: int | None = None
    ) -> str:
        """Publish rows of about `tokens` tokens each, in the form of the method.

        With `shortest`, rows have random lengths from it to `tokens`.
        """
        splits = {"train": rows, "validation": held_out, "test": held_out}
        texts = excerpts(tokens, shortest)
        with self.store.staging() as staging:
            for split, number in splits.items():
                lines = (row_of(method, text).to_line() for text in itertools.islice(texts, number))
                (staging / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
            return self.store.publish("datasets", staging)

    def preflight(
        self,
        run: str,
        model: Path,
        dataset: str,
        method: Method,
        *,
        devices: int = 1,
        sharding: Sharding = "Auto",
        **wanted: Any,
    ) -> PreflightResult:
        """Run preflight: it publishes the model, chooses the hyperparameters, and predicts.

        Forgets an earlier run of this name.
        """
        self.store.delete_run(run)
        config = PreflightConfig(
            **self._common(run),
            base_model_uri="pvc://gpu/model",
            base_model_path=str(model),
            dataset=dataset,
            method=requested(method),
            hyperparameters=RequestedHyperparameters(**wanted),
            device=device_facts(self.device),
            devices=devices,
            sharding=sharding,
            on_predicted_out_of_memory="Warn",
        )
        result = self.run(config).preflight
        if result is None:
            raise GPUCheckFailed("preflight ended without its result")
        return result

    def train_config(self, run: str, dataset: str, method: Method, found: PreflightResult) -> TrainConfig:
        """The config that the operator would build from preflight's result."""
        if found.preference is not None:
            method = method.model_copy(update={"preference": found.preference})
        return TrainConfig(
            **self._common(run),
            base_model=found.base_model,
            dataset=dataset,
            method=method,
            hyperparameters=found.hyperparameters,
            devices=found.hyperparameters.processes,
            metrics_port=0,
        )

    def train(self, config: TrainConfig, times: Path | None = None) -> TrainResult:
        """Train in a process of its own, as in a pod; `times` gets the time after each optimizer step."""
        result = self.run(config, {} if times is None else {TIMES_ENV: str(times)}).train
        if result is None:
            raise GPUCheckFailed("train ended without its result")
        return result

    def evaluate_config(
        self, run: str, dataset: str, found: PreflightResult, trained: TrainResult
    ) -> EvaluateConfig:
        """The config that evaluates the best Checkpoint of a run."""
        best = next(each for each in trained.checkpoints if each.best)
        return EvaluateConfig(
            **self._common(run),
            base_model=found.base_model,
            dataset=dataset,
            checkpoint=best.digest,
            checkpoint_type=best.type,
            max_sequence_length=found.hyperparameters.max_sequence_length,
            max_new_tokens=32,
        )

    def run(self, config: StageConfig, more: Mapping[str, str] = MappingProxyType({})) -> StageResult:
        """Run a stage to its end, with more environment. Raises GPUCheckFailed with the end of its log."""
        process = self.start(config, more)
        output, _ = process.communicate()
        return result_of(output, process.returncode)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the processes of this step."""
        hidden = {} if self.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        return {**os.environ, "HF_HUB_OFFLINE": "1", **hidden}

    def start(
        self, config: StageConfig, more: Mapping[str, str] = MappingProxyType({})
    ) -> "subprocess.Popen[str]":
        """Start a stage as a pod does, with more environment; its log goes to a pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", STAGE_MODULE],
            env={**self.environment, CONFIG_ENV: config.to_json(), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _common(self, run: str) -> dict[str, Any]:
        return {"owner": OWNER, "run": run, "store": self.store_config}


@dataclass(frozen=True)
class PeerTask:
    """What `tests.gpu.peer` trains: the rows of `Scene.dataset` for LoRA."""

    model: str
    rows: int
    shortest: int
    longest: int
    rows_per_step: int
    rows_at_once: int
    checkpointing: bool
    folder: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def result_of(output: str, code: int) -> StageResult:
    """The result in a log. Raises GPUCheckFailed if there is none, or if it is a failure."""
    for message in messages(output):
        if message.startswith(RESULT):
            result = StageResult.parse(message.removeprefix(RESULT))
            if result is not None and result.outcome == "Succeeded":
                return result
    raise GPUCheckFailed(f"exit code {code}; the log ends with:\n{output[-3000:]}")


def messages(output: str) -> Iterator[str]:
    """The messages of a log, and other lines as they are."""
    for line in output.splitlines():
        try:
            yield json.loads(line)["message"]
        except (ValueError, KeyError, TypeError):
            yield line


def excerpts(tokens: int, shortest: int | None = None) -> Iterator[str]:
    """Endless random excerpts of a corpus of about `tokens` tokens each, half of them the question.

    With `shortest`, they have random lengths from it to `tokens`.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny())
    ids: list[int] = tokenizer(CORPUS.read_text(), add_special_tokens=False)["input_ids"]
    ids = ids * (1 + 2 * tokens // len(ids))
    chance = random.Random(0)  # noqa: S311 - rows, not secrets
    while True:
        length = chance.randint(shortest or tokens, tokens)
        begin = chance.randrange(len(ids) - length)
        yield str(tokenizer.decode(ids[begin : begin + length]))


def row_of(method: Method, text: str) -> Row:
    """A row of the method's form: the first half of the text is the prompt, the second the answer."""
    middle = len(text) // 2
    row = Row.pair(text[:middle], text[middle:])
    kind = OBJECTIVES[method.objective].rows
    if kind is PAIRS:
        return replace(row, form="Preference", rejected=text[: len(text) - middle])
    if kind is LABELLED and len(text) % 2:
        row = Row.pair(text[:middle], BAD_ANSWER * (middle // len(BAD_ANSWER) or 1))
        return replace(row, form="KTO", label=False)
    if kind is LABELLED:
        return replace(row, form="KTO", label=True)
    return row
