# SPDX-License-Identifier: Apache-2.0
"""The subject Live: the champion of the model line, measured on the rows of the new Checkpoint."""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import GateBound, LiveModel
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.results import CheckpointResult, EvaluateResult
from finetune_trainer.evaluate import runner
from finetune_trainer.evaluate.measured_model import MeasuredModel
from finetune_trainer.evaluate.measurement_log import FILE
from finetune_trainer.model.loading import load_placed
from finetune_trainer.tokens.chat_template import load_tokenizer
from tests.trainer.workbench import ROWS, Workbench
from tools.models import tiny

ADAPTER = Method(lora=LoRA(r=4, alpha=8))
METHODS: Mapping[str, Method] = {
    "adapter": Method(lora=LoRA(r=2, alpha=8)),
    "DoRA": Method(lora=LoRA(r=2, alpha=8, dora=True)),
    "Full": Method(type="Full"),
    "other base": Method(lora=LoRA(r=2, alpha=8)),
}


class Line:
    """A Checkpoint to evaluate, and champions of its line."""

    def __init__(self, root: Path) -> None:
        self.bench = Workbench(root)
        self.base = self.bench.model()
        self.dataset = self.bench.dataset(ROWS, (), ROWS[:5])
        self.tuned = self.train(self.base, ADAPTER, epochs=1)

    def train(self, base: Digest, method: Method, **settings: Any) -> CheckpointResult:
        config = self.bench.train_config(base, self.dataset, method=method, **settings)
        (checkpoint,) = self.bench.train(config.model_copy(update={"run": uuid.uuid4().hex})).checkpoints
        return checkpoint

    def other_base(self) -> Digest:
        """The tiny model with another weight, so that it has another digest."""
        folder = self.bench.root / "other"
        shutil.copytree(tiny(), folder, dirs_exist_ok=True)
        (folder / "README.md").write_text("another model\n")
        return self.bench.model(folder)

    def other_tokenizer(self) -> Digest:
        """The tiny model with one more token, which no row has."""
        folder = self.bench.root / "other-tokenizer"
        shutil.copytree(tiny(), folder)
        tokenizer = load_tokenizer(folder)
        tokenizer.add_tokens(["<never>"])
        tokenizer.save_pretrained(folder)
        return self.bench.model(folder)

    def champion(self, kind: str) -> LiveModel:
        others = {"other base": self.other_base, "other tokenizer": self.other_tokenizer}
        base = others[kind]() if kind in others else self.base
        checkpoint = self.train(base, METHODS.get(kind, ADAPTER), epochs=3, seed=11)
        return LiveModel(name="before", digest=checkpoint.digest, type=checkpoint.type, base_model=base)

    def config(self, run: str, live: LiveModel | None, **settings: Any) -> EvaluateConfig:
        given = {"subjects": ("Tuned", "Base", "Live"), "live": live, **settings}
        config = self.bench.evaluate_config(self.base, self.dataset, self.tuned, **given)
        return config.model_copy(update={"run": run})

    def evaluate(self, run: str, live: LiveModel | None, **settings: Any) -> EvaluateResult:
        return self.bench.run_evaluate(self.config(run, live, **settings))

    def alone(self, live: LiveModel) -> dict[str, float]:
        """The scores of the champion as the Checkpoint of an evaluation of its own."""
        result = CheckpointResult(digest=live.digest, type=live.type, step=1, epoch=1)
        return scores(
            self.bench.evaluate(live.base_model, self.dataset, result, subjects=("Tuned",)), "Tuned"
        )

    def lines(self, run: str, subject: str) -> list[dict[str, Any]]:
        content = self.bench.store.run_folder(run, "evaluate").read(FILE) or b""
        lines = [json.loads(line) for line in content.splitlines()[1:]]
        return [line for line in lines if line["subject"] == subject]


def scores(result: EvaluateResult, subject: str) -> dict[str, float]:
    return {score.metric: score.value for score in result.scores if score.subject == subject}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return Line(tmp_path_factory.mktemp("live"))


@pytest.mark.parametrize("kind", METHODS)
def test_the_champion_has_the_scores_of_its_own_evaluation(line: Line, kind: str) -> None:
    live = line.champion(kind)

    result = line.evaluate(kind, live)

    assert scores(result, "Live") == line.alone(live)
    assert scores(result, "Live") != scores(result, "Tuned") != scores(result, "Base")
    without = line.evaluate(f"{kind} without", None)
    assert scores(result, "Tuned") == scores(without, "Tuned")
    assert scores(result, "Base") == scores(without, "Base")


def test_figures_per_token_are_not_compared_with_a_champion_of_another_tokenizer(line: Line) -> None:
    live = line.champion("other tokenizer")
    gates = (
        GateBound(metric="loss", over="Live", min_gain=0),
        GateBound(metric="exact_match", over="Live", min_gain=-1),
    )

    result = line.evaluate("other-tokenizer", live, gates=gates)

    assert set(scores(result, "Live")) == {"exact_match"}
    assert {"exact_match", "loss"} <= set(scores(result, "Base"))
    assert [each.gain is None for each in result.evidence] == [True, False]
    (reason,) = result.unmeasured
    assert reason.subject == "Live"
    assert "has another tokenizer, and loss per token cannot be compared" in reason.message


def test_a_line_without_a_champion_says_so(line: Line) -> None:
    result = line.evaluate("first", None)

    assert {score.subject for score in result.scores} == {"Tuned", "Base"}
    (left_out,) = result.unmeasured
    assert (left_out.subject, left_out.message) == (
        "Live",
        "the model line has no champion to compare with",
    )


def test_adapters_of_one_base_model_share_it_in_memory(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []

    def record(folder: Path, *arguments: Any, **settings: Any) -> Any:
        loaded.append(folder)
        return load_placed(folder, *arguments, **settings)

    live = line.champion("adapter")
    monkeypatch.setattr(runner, "load_placed", record)
    line.evaluate("shared", live)

    assert len(loaded) == 1


@pytest.mark.parametrize("damage", ["deleted", "corrupt", "does not fit"])
def test_a_champion_that_cannot_be_read_is_left_out_with_the_reason(tmp_path: Path, damage: str) -> None:
    line = Line(tmp_path)
    live = line.champion("adapter")
    folder = Path(line.bench.store_config.path) / "checkpoints" / live.digest.removeprefix("sha256:")
    if damage == "deleted":
        shutil.rmtree(folder)
    elif damage == "corrupt":
        weights = folder / "adapter_model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    else:
        live = live.model_copy(update={"digest": unfitting(line, folder)})

    result = line.evaluate(damage, live)

    assert {score.subject for score in result.scores} == {"Tuned", "Base"}
    (left_out,) = result.unmeasured
    assert left_out.subject == "Live"
    assert left_out.message.startswith("the champion before: ")
    assert scores(result, "Tuned") == scores(line.evaluate("without", None), "Tuned")


def unfitting(line: Line, folder: Path) -> Digest:
    """Publish the adapter with another rank in its settings."""
    with line.bench.store.staging() as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        (staging / "manifest.json").unlink()
        settings = staging / "adapter_config.json"
        settings.write_text(settings.read_text().replace('"r": 2', '"r": 3'))
        return line.bench.store.publish("checkpoints", staging)


def test_a_new_champion_is_measured_alone_and_the_other_predictions_stay(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.evaluate("renewed", line.champion("adapter"))
    before = {subject: line.lines("renewed", subject) for subject in ("Tuned", "Base", "Live")}
    generated: list[int] = []
    generate = MeasuredModel.generate

    def record(model: MeasuredModel, examples: Any) -> Any:
        generated.extend(example.row for example in examples)
        return generate(model, examples)

    monkeypatch.setattr(MeasuredModel, "generate", record)
    live = line.champion("Full")
    result = line.evaluate("renewed", live)

    assert sorted(generated) == [1, 2, 3, 4, 5]
    assert scores(result, "Live") == line.alone(live)
    assert line.lines("renewed", "Tuned") == before["Tuned"]
    assert line.lines("renewed", "Base") == before["Base"]
    assert line.lines("renewed", "Live") != before["Live"]
    assert len(line.lines("renewed", "Live")) == 5
