# SPDX-License-Identifier: Apache-2.0
"""Checks that can veto a promotion: weights that change nothing, are not those recorded, or leak secrets."""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.dataset import Checks
from finetune_trainer.contract.evaluation import CheckFinding, EvaluationChecks, MetricOptions
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import CheckpointResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.data import result
from finetune_trainer.data.checks.scanner import Scanner
from finetune_trainer.data.result import HashedValues, SensitiveHashes
from finetune_trainer.evaluate.checks import find_memorized
from finetune_trainer.model.loading import load_adapter, load_base
from finetune_trainer.model.probe import compute_probe, probe_prompts
from finetune_trainer.model.probe_record import PROBE_FILE, ProbeRecord
from finetune_trainer.prepare.stage import publish_hashes
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import StageFailure
from tests.trainer.workbench import ROWS, TEAMS, Workbench, tiny_tokenizer, weights
from tools.models import tiny

CPU = torch.device("cpu")
CARD = "4012888888881881"
WEIGHTS = "adapter_model.safetensors"
ALL_CHECKS = EvaluationChecks()
SCANNED = Checks(email_addresses="Warn")
Tensors = dict[str, torch.Tensor]


def scaled(factor: float) -> Callable[[Tensors], Tensors]:
    """A change of an adapter: its effect times `factor`."""
    return lambda tensors: {
        name: tensor * factor if "lora_B" in name else tensor for name, tensor in tensors.items()
    }


@dataclass(frozen=True)
class Trained:
    """An adapter of a short run, and changed copies of it."""

    bench: Workbench
    base: Digest
    dataset: Digest
    checkpoint: CheckpointResult

    def changed(self, change: Callable[[Tensors], Tensors], *, probed: bool = True) -> CheckpointResult:
        """Publish changed weights, with a probe of their own or with that of the trained weights."""
        store = self.bench.store
        with store.staging() as staging:
            shutil.copytree(self.bench.checkpoint(self.checkpoint), staging, dirs_exist_ok=True)
            changed = change(weights(staging))
            save_file({name: each.contiguous() for name, each in changed.items()}, staging / WEIGHTS)
            record = self.probe(staging) if probed else None
            digest = store.publish("checkpoints", staging)
        result = self.checkpoint.model_copy(update={"digest": digest})
        return self.recorded(result, record or self.record())

    def recorded(self, checkpoint: CheckpointResult, record: ProbeRecord) -> CheckpointResult:
        """The checkpoint with another record."""
        with self.bench.store.staging() as staging:
            (staging / PROBE_FILE).write_text(record.model_dump_json())
            of = ArtifactRef(kind="checkpoints", digest=checkpoint.digest)
            return checkpoint.model_copy(update={"probe": self.bench.store.publish(of, staging)})

    def record(self) -> ProbeRecord:
        record = self.probe(self.bench.checkpoint(self.checkpoint))
        assert record is not None
        return record

    def probe(self, folder: Path) -> ProbeRecord | None:
        model = load_adapter(load_base(tiny(), None, CPU), folder).eval()
        tokenizer = tiny_tokenizer()
        return compute_probe(model, probe_prompts(tokenizer), tokenizer.pad_token_id)

    def findings(
        self,
        checkpoint: CheckpointResult,
        checks: EvaluationChecks | None = ALL_CHECKS,
        **settings: Any,
    ) -> dict[str, bool]:
        """Whether each finding is a veto."""
        settings = {"metrics": ("exact_match",), "probe": checkpoint.probe, "checks": checks} | settings
        result = self.bench.evaluate(settings.pop("base", self.base), self.dataset, checkpoint, **settings)
        return {finding.check: finding.veto for finding in result.findings}


def make(root: Path, lora: LoRA) -> Trained:
    bench = Workbench(root)
    base, dataset = bench.model(), bench.dataset(ROWS, (), ROWS[:2])
    config = bench.train_config(base, dataset, method=Method(lora=lora), epochs=1)
    return Trained(bench, base, dataset, bench.train(config).checkpoints[0])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make(tmp_path_factory.mktemp("checks"), LoRA(r=4, alpha=8))


def test_a_trained_adapter_passes_every_check(trained: Trained) -> None:
    assert trained.findings(trained.checkpoint) == {}


@pytest.mark.parametrize(
    ("asked", "found"), [("Veto", {"NoChange": True}), ("Warn", {"NoChange": False}), ("Off", {})]
)
def test_an_adapter_without_effect_is_found(
    trained: Trained, asked: Literal["Off", "Warn", "Veto"], found: dict[str, bool]
) -> None:
    without_effect = trained.changed(scaled(0))

    assert trained.findings(without_effect, EvaluationChecks(no_change=asked)) == found


def test_a_dora_adapter_without_effect_is_found_although_it_rounds(tmp_path: Path) -> None:
    dora = make(tmp_path, LoRA(r=4, alpha=8, dora=True))
    before = load_base(tiny(), None, CPU)
    norms = {
        f"base_model.model.{name.removesuffix('.weight')}": tensor.norm(dim=1)
        for name, tensor in before.named_parameters()
        if "proj" in name
    }

    def without_effect(tensors: Tensors) -> Tensors:
        magnitudes = {name: norms[name.split(".lora_")[0]] for name in tensors if "magnitude" in name}
        return scaled(0)(tensors) | magnitudes

    assert dora.findings(dora.checkpoint) == {}
    assert dora.findings(dora.changed(without_effect)) == {"NoChange": True}


def test_an_adapter_with_a_tiny_effect_changes_something(trained: Trained) -> None:
    assert trained.findings(trained.changed(scaled(1e-2))) == {}


@pytest.mark.parametrize("factor", [0.9, -1, 3])
def test_weights_that_are_not_those_recorded_are_found(trained: Trained, factor: float) -> None:
    tampered = trained.changed(scaled(factor), probed=False)

    assert trained.findings(tampered) == {"ProbeMismatch": True}


@pytest.mark.parametrize("how", [{"device": "cuda", "dtype": "bfloat16"}, {"quantized": True}])
def test_where_no_tolerance_was_measured_a_difference_vetoes_nothing(
    trained: Trained, how: dict[str, Any]
) -> None:
    tampered = trained.changed(scaled(-3), probed=False)
    elsewhere = trained.record().model_copy(update=how)

    assert trained.findings(trained.recorded(tampered, elsewhere)) == {"ProbeMismatch": False}


def test_weights_that_predict_no_finite_value_are_found(trained: Trained) -> None:
    broken = trained.changed(scaled(float("nan")), probed=False)

    assert trained.findings(broken) == {"NotFinite": True}


BY_LABEL: dict[str, Any] = {
    "metrics": ("accuracy",),
    "options": MetricOptions(labels=TEAMS, constrained_labels=True),
}


@pytest.mark.parametrize("settings", [{"metrics": ("exact_match",)}, BY_LABEL], ids=["answers", "labels"])
def test_an_answer_that_ends_in_an_overflow_is_found_without_a_probe(
    trained: Trained, settings: dict[str, Any]
) -> None:
    broken = trained.changed(scaled(float("nan")), probed=False).model_copy(update={"probe": None})
    config = trained.bench.evaluate_config(
        trained.base, trained.dataset, broken, subjects=("Tuned",), checks=ALL_CHECKS, **settings
    ).model_copy(update={"run": uuid.uuid4().hex})

    for _ in ("measured", "continued"):
        (finding,) = trained.bench.run_evaluate(config).findings

        assert (finding.check, finding.veto) == ("NotFinite", True)
        assert "in answers to rows 1, 2 of the test split" in finding.message


@pytest.mark.parametrize(
    ("checks", "named"), [(ALL_CHECKS, "Base"), (None, "Tuned")], ids=["checked", "not checked"]
)
def test_a_model_that_no_check_covers_is_not_compared_with_when_it_overflows(
    trained: Trained, tmp_path: Path, checks: EvaluationChecks | None, named: str
) -> None:
    """Its score would be 0, and any gate over it would pass."""
    folder = tmp_path / "overflowing"
    shutil.copytree(tiny(), folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: each * float("nan") for name, each in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    base = trained.bench.model(folder)
    unrecorded = trained.checkpoint.model_copy(update={"probe": None})

    with pytest.raises(StageFailure) as caught:
        trained.findings(unrecorded, checks, base=base)

    assert caught.value.reason == FailureReason.LOSS_NOT_FINITE
    assert f"the model {named} predicts NaN or infinity in its answer to test row" in caught.value.message


def test_nothing_is_compared_without_a_record_or_for_an_operator_that_knows_no_checks(
    trained: Trained,
) -> None:
    without_effect = trained.changed(scaled(0))

    assert trained.findings(without_effect, probe=None) == {}
    assert trained.findings(without_effect, checks=None) == {}
    assert trained.findings(without_effect, probe="sha256:" + "e" * 64) == {}


def test_a_record_of_a_later_format_is_not_compared(trained: Trained) -> None:
    with trained.bench.store.staging() as staging:
        (staging / PROBE_FILE).write_text(json.dumps({"format": 2, "anything": 1}))
        of = ArtifactRef(kind="checkpoints", digest=trained.checkpoint.digest)
        newer = trained.bench.store.publish(of, staging)

    assert trained.findings(trained.checkpoint, probe=newer) == {}


def test_a_restarted_evaluation_finds_the_same(trained: Trained) -> None:
    without_effect = trained.changed(scaled(0))
    settings = {"metrics": ("exact_match",), "probe": without_effect.probe, "checks": ALL_CHECKS}
    config = trained.bench.evaluate_config(trained.base, trained.dataset, without_effect, **settings)

    first = trained.bench.run_evaluate(config)

    assert first.findings
    assert trained.bench.run_evaluate(config) == first


def hashes_of(*rows: Row) -> SensitiveHashes:
    values = HashedValues()
    for row in rows:
        values.add(Scanner(SCANNED).values_of(row))
    return values.found(SCANNED)


def memorized(row: Row, answer: str, *learned: Row) -> CheckFinding | None:
    return find_memorized([row], {1: answer}, hashes_of(*learned), "Veto", split="validation")


LEARNED = (
    Row.pair("who?", 'Ask ann@corp.example. password = "Zx81-horse-Battery9"'),
    Row.pair("card?", f"It is {CARD}."),
)
QUESTION = Row.pair("order late?", "billing")


@pytest.mark.parametrize(
    "answer",
    [
        "Write to ann@corp.example",
        "Write to ANN@CORP.EXAMPLE!",
        "4012-8888-8888-1881 is the card",
        'use password: "Zx81-horse-Battery9"',
        "use Zx81-horse-Battery9",
    ],
)
def test_an_answer_that_repeats_a_value_of_the_training_rows_is_found(answer: str) -> None:
    finding = memorized(QUESTION, answer, *LEARNED)

    assert finding is not None
    assert finding.veto
    assert finding.message.startswith("1 answer repeats secrets or personal data of the training rows")
    assert "rows 1 of the validation split" in finding.message
    assert answer not in finding.message


@pytest.mark.parametrize("answer", ["billing", "Write to bob@corp.example", "4111 1111 1111 1111", "Zx81"])
def test_other_values_of_the_same_kind_are_not_found(answer: str) -> None:
    assert memorized(QUESTION, answer, *LEARNED) is None


def test_more_values_than_are_compared_are_a_finding_without_a_veto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "MAX_HASHES", 1)
    found = SensitiveHashes.from_bytes(hashes_of(*LEARNED).to_bytes())

    finding = find_memorized([QUESTION], {1: "billing"}, found, "Veto", split="test")

    assert finding is not None
    assert not finding.veto
    assert finding.message.startswith("answers were compared with 1 of the secrets and personal data")
    assert hashes_of(LEARNED[1], LEARNED[1]).complete


def test_what_the_prompt_says_may_be_repeated() -> None:
    asked = Row.pair("is 4012 8888 8888 1881 blocked?", "yes")

    assert memorized(asked, f"{CARD} is blocked", *LEARNED) is None
    assert memorized(asked, f"{CARD} of ann@corp.example is blocked", *LEARNED) is not None


def test_a_model_that_learned_a_card_number_by_heart_is_vetoed(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    base = bench.model()
    secret = Row.pair("card number?", CARD)
    test = (Row.pair("card number?", "I must not tell the number of a card."), *ROWS[:2])
    dataset = bench.dataset((*ROWS, secret), (), test)
    config = bench.train_config(
        base,
        dataset,
        rows=len(ROWS) + 1,
        method=Method(lora=LoRA(r=8, alpha=16, dropout=0)),
        epochs=25,
        learning_rate=1e-2,
        batch_size=4,
        save_every_steps=1000,
    )
    (checkpoint,) = bench.train(config).checkpoints
    asked: dict[str, Any] = {"metrics": ("exact_match",), "checks": ALL_CHECKS}

    before = bench.evaluate(base, dataset, checkpoint, **asked).findings
    publish_hashes(bench.store, dataset, hashes_of(*ROWS, secret))
    (finding,) = bench.evaluate(base, dataset, checkpoint, **asked).findings
    off = bench.evaluate(
        base, dataset, checkpoint, **asked | {"checks": EvaluationChecks(memorization="Off")}
    ).findings

    assert before == off == ()
    assert (finding.check, finding.veto) == ("Memorization", True)
    assert "rows 1 of the test split" in finding.message
    derived = bench.root / "store" / "datasets" / dataset.removeprefix("sha256:") / "derived"
    stored = [path.read_bytes() for path in derived.rglob("*") if path.is_file()]
    assert stored
    assert not any(CARD.encode() in content for content in stored)
