# SPDX-License-Identifier: Apache-2.0
"""DPO, KTO and ORPO: what they learn from which tokens, and interrupted runs."""

import math
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import LoRA, Method, Preference
from finetune_trainer.contract.references import ParentCheckpoint
from finetune_trainer.contract.results import CheckpointResult
from finetune_trainer.distributed.process_group import ALONE
from finetune_trainer.model.loading import load_adapter, load_base
from finetune_trainer.rows import Message, Row
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.tokens.chat_template import render, stop_token_ids
from finetune_trainer.tokens.encoding import AnswerEncoder, EncodedAnswers
from finetune_trainer.train.factory import make_trainer
from finetune_trainer.train.model_setup import trainable_model
from finetune_trainer.train.preference.preference_trainer import PreferenceTrainer
from tests.methods import sampled
from tests.trainer.processes import run_fresh, start, wait_for_state
from tests.trainer.test_train_resume import preempted
from tests.trainer.workbench import JUDGED, PAIRS, Sheet, Undisturbed, Workbench, elsewhere, tiny_tokenizer
from tools.models import tiny

ADAPTER = LoRA(r=4, alpha=8)
KTO = Preference(desirable_weight=1, undesirable_weight=1)
METHODS = {
    "DPO": Method(objective="DPO", lora=ADAPTER),
    "KTO": Method(objective="KTO", lora=ADAPTER, preference=KTO),
    "ORPO": Method(objective="ORPO", lora=ADAPTER),
}
QUANTIZED = {
    f"{name} with QLoRA": method.model_copy(update={"type": "QLoRA"}) for name, method in METHODS.items()
}
CPU = torch.device("cpu")


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def rows_for(method: str) -> Sequence[Row]:
    return JUDGED if method.startswith("KTO") else PAIRS


def config_for(bench: Workbench, method: str, **settings: Any) -> TrainConfig:
    rows = rows_for(method)
    chosen = (METHODS | QUANTIZED)[method]
    return bench.train_config(dataset=bench.dataset(rows, rows[:5]), method=chosen, **settings)


def trainer_for(method: str, folder: Path) -> PreferenceTrainer:
    """A trainer on the rows of the method, with batches of two."""
    encoder = AnswerEncoder(tiny_tokenizer())
    config = Workbench(folder).train_config("sha256:" + "0" * 64, "sha256:" + "0" * 64)
    trainer = make_trainer(
        trainable_model(tiny(), METHODS[method], CPU),
        [encoder.encode(row) for row in rows_for(method)],
        tokenizer=tiny_tokenizer(),
        method=METHODS[method],
        hyperparameters=config.hyperparameters,
        folder=folder,
        device=CPU,
        continues=False,
        group=ALONE,
    )
    assert isinstance(trainer, PreferenceTrainer)
    return trainer


@pytest.mark.parametrize("method", METHODS)
def test_a_run_moves_what_its_method_is_for(bench: Workbench, method: str) -> None:
    sheet = Sheet()

    result = bench.train(config_for(bench, method, epochs=6), sheet)

    first, last = sheet.seen[0], sheet.seen[-1]
    (final,) = (checkpoint for checkpoint in result.checkpoints if checkpoint.final)
    assert last.loss < first.loss  # type: ignore[operator]
    assert last.reward_margin > first.reward_margin  # type: ignore[operator]
    assert final.reward_margin > 0.1  # type: ignore[operator]
    assert final.reward_accuracy == (None if method == "KTO" else 1)
    assert final.type == "Adapter"


@pytest.mark.parametrize("method", sampled([*METHODS, *QUANTIZED], *METHODS))
def test_a_run_stopped_in_and_between_epochs_ends_with_the_same_weights(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    config = config_for(bench, method)

    for step in (1, 3, 5):
        preempted(bench, config, step)

    assert bench.train(config) == undisturbed(config).model_copy(update={"restarts": 3})


@pytest.mark.parametrize("method", sampled(METHODS, "DPO"))
def test_a_run_that_is_killed_ends_with_the_same_weights(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    config = config_for(bench, method, epochs=8)
    with start(config) as process:
        wait_for_state(bench, config, "step-4")
        assert process.kill() == -signal.SIGKILL

    result = bench.train(config)

    assert result == undisturbed(config).model_copy(update={"restarts": 1})


@pytest.mark.parametrize("method", sampled(METHODS, "KTO"))
def test_gradient_checkpointing_changes_nothing(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    checkpointed = bench.train(config_for(bench, method, gradient_checkpointing=True))

    assert checkpointed == undisturbed(config_for(bench, method))


@pytest.mark.parametrize("method", sampled(METHODS, "ORPO"))
def test_a_split_of_a_steps_rows_changes_nothing(
    bench: Workbench, undisturbed: Undisturbed, method: str
) -> None:
    whole = undisturbed(config_for(bench, method, batch_size=4))

    split = bench.train(config_for(bench, method, batch_size=4, max_batch_rows=1))

    assert (split.steps, split.tokens) == (whole.steps, whole.tokens)
    assert split.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    assert split.validation_loss == pytest.approx(whole.validation_loss, rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_answers_of_a_batch_are_the_tokens_of_serving(method: str, tmp_path: Path) -> None:
    trainer = trainer_for(method, tmp_path)
    tokenizer = tiny_tokenizer()

    batches = [batch for step in trainer.get_train_dataloader() for batch in step]

    learned = {pair for batch in batches for pair in _sequences(method, batch)}
    expected = set()
    for row in rows_for(method):
        prompt = render(tokenizer, tuple(turn.to_dict() for turn in row.input), add_generation_prompt=True)
        for answer in (row.output, row.rejected):
            if answer is not None:
                asked = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
                said = tokenizer(answer, add_special_tokens=False)["input_ids"]
                expected.add((asked, (*said, stop_token_ids(tokenizer, None)[-1])))
    assert learned == expected


def _sequences(method: str, batch: dict[str, Any]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompt and answer of each sequence that has an answer of its row."""
    rows = len(batch["counts"])
    part = batch["parts"][0]  # with KTO, the others have answers of other rows
    found = []
    for index, (ids, mask, labels) in enumerate(
        zip(part["input_ids"], part["attention_mask"], part["labels"], strict=True)
    ):
        real, answer = mask == 1, labels >= 0
        if method == "ORPO" and index < rows:  # the prompt has labels too
            answer[: int(batch["prompt_targets"][index]) + 1] = False
        found.append((tuple(ids[real & ~answer].tolist()), tuple(ids[answer].tolist())))
    return found


def test_kto_compares_each_row_with_the_row_before_it_across_batches_and_steps(tmp_path: Path) -> None:
    steps = list(trainer_for("KTO", tmp_path).get_train_dataloader())

    found: list[tuple[list[int], list[int]]] = []
    for batch in (batch for step in steps for batch in step):
        own, other = (
            [_labelled(*each) for each in zip(part["input_ids"], part["labels"], strict=True)]
            for part in batch["parts"]
        )
        found += zip(own, other, strict=True)
    encoder, rows = AnswerEncoder(tiny_tokenizer()), rows_for("KTO")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(7)).tolist()
    answers = [encoder.encode(rows[index]).answer for index in order]
    assert [len(step) for step in steps] == [2, 2, 2]
    assert sorted(found) == sorted(zip(answers, [answers[-1], *answers[:-1]], strict=True))


def _labelled(ids: torch.Tensor, labels: torch.Tensor) -> list[int]:
    tokens: list[int] = ids[labels >= 0].tolist()
    return tokens


def test_the_margin_of_dpo_is_that_of_the_published_weights_over_the_base_model(bench: Workbench) -> None:
    method = Method(objective="DPO", lora=ADAPTER, preference=Preference(beta=0.3))
    config = bench.train_config(dataset=bench.dataset(PAIRS, PAIRS[:5]), method=method, epochs=4)
    (final,) = (checkpoint for checkpoint in bench.train(config).checkpoints if checkpoint.final)

    encoder = AnswerEncoder(tiny_tokenizer())
    base = load_base(tiny(), None, CPU)
    rows = [encoder.encode(row) for row in PAIRS[:5]]
    before = [_log_likelihoods(base, row) for row in rows]
    tuned = load_adapter(base, bench.checkpoint(final))
    after = [_log_likelihoods(tuned, row) for row in rows]

    margins = [0.3 * ((new[0] - old[0]) - (new[1] - old[1])) for old, new in zip(before, after, strict=True)]
    assert final.reward_margin == pytest.approx(sum(margins) / 5, rel=1e-3)
    expected = sum(-math.log(1 / (1 + math.exp(-margin))) for margin in margins) / 5
    assert final.validation_loss == pytest.approx(expected, rel=1e-3)


def _log_likelihoods(model: torch.nn.Module, row: EncodedAnswers) -> tuple[float, float]:
    """Log-likelihoods of the chosen and the rejected answer."""
    return log_likelihood(model, row.prompt, row.answer), log_likelihood(
        model, row.prompt, row.rejected or []
    )


def log_likelihood(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> float:
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits[0].float().log_softmax(-1)
    return float(sum(logits[len(prompt) - 1 + at, token] for at, token in enumerate(answer)))


@pytest.mark.parametrize(
    "method", sampled(["DPO", "KTO", "DPO with QLoRA", "KTO with QLoRA"], "DPO", "KTO", "DPO with QLoRA")
)
def test_a_continued_adapter_is_its_own_reference(bench: Workbench, method: str) -> None:
    """Before the first step the model equals the reference, which a restart does not change."""
    config = config_for(bench, method, epochs=4)
    parent = bench.train(config.model_copy(update={"run": "parent"})).checkpoints[-1]
    onwards = config.model_copy(update={"parent": named(parent)})
    sheet = Sheet(stop_at=frozenset({2}))
    with pytest.raises(Preempted):
        bench.train(onwards, sheet)

    assert sheet.seen[0].loss == pytest.approx(
        {"DPO": math.log(2), "KTO": 0.5}[config.method.objective], abs=1e-6
    )
    assert sheet.seen[0].reward_margin == 0
    result = bench.train(onwards)
    other = elsewhere(bench, "uninterrupted")
    same = config_for(other, method, epochs=4)
    assert other.train(same.model_copy(update={"run": "parent"})).checkpoints[-1] == parent
    straight = other.train(same.model_copy(update={"parent": named(parent)}))
    assert result == straight.model_copy(update={"restarts": 1})


def named(parent: CheckpointResult) -> ParentCheckpoint:
    return ParentCheckpoint(name="routing-1f1f-6", digest=parent.digest, type=parent.type)


def test_what_is_published_is_a_plain_adapter_without_the_reference(bench: Workbench) -> None:
    config = config_for(bench, "DPO")
    parent = bench.train(config.model_copy(update={"run": "parent"})).checkpoints[-1]

    onwards = bench.train(config.model_copy(update={"parent": named(parent)})).checkpoints[-1]

    plain = load_file(bench.checkpoint(parent) / "adapter_model.safetensors")
    assert load_file(bench.checkpoint(onwards) / "adapter_model.safetensors").keys() == plain.keys()
    assert not [name for name in plain if "ref" in name]


@pytest.mark.parametrize("method", sampled(METHODS, "DPO"))
def test_nothing_is_written_outside_the_store_and_nothing_is_asked_over_the_network(
    bench: Workbench, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(bench, method)
    home, scratch = bench.root / "home", bench.root / "scratch"
    for folder in (home, scratch):
        folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("HF_", "XDG_", "CI"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(scratch))
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(0)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")

        ended = run_fresh(config)

        with pytest.raises(BlockingIOError):
            hub.accept()
    assert ended.code == 0, ended.logs
    assert not [path for folder in (home, scratch) for path in folder.rglob("*") if path.is_file()]
    assert not [line for line in ended.logs if line["level"] != "info" and "metrics" not in line["message"]]


def test_only_the_last_answer_of_a_chat_is_judged() -> None:
    turns = (
        Message("user", "order late?"),
        Message("assistant", "shipping"),
        Message("user", "card lost?"),
        Message("assistant", "billing"),
    )

    encoded = AnswerEncoder(tiny_tokenizer()).encode(Row(turns, "Preference", rejected="sales"))

    tokenizer = tiny_tokenizer()
    assert "shipping" in tokenizer.decode(encoded.prompt)
    assert tokenizer.decode(encoded.answer, skip_special_tokens=True) == "billing"
    assert tokenizer.decode(encoded.rejected or [], skip_special_tokens=True) == "sales"
    assert encoded.num_tokens == len(encoded.prompt) + max(len(encoded.answer), len(encoded.rejected or []))


def test_a_cut_row_keeps_the_prompt_and_loses_the_end_of_both_answers() -> None:
    row = EncodedAnswers([1, 2, 3], [4, 5, 6], [7, 8])

    assert row.truncate(5) == EncodedAnswers([1, 2, 3], [4, 5], [7, 8])
    assert row.truncate(4) == EncodedAnswers([1, 2, 3], [4], [7])
    assert row.truncate(2) == EncodedAnswers([1, 2], [], [])
