# SPDX-License-Identifier: Apache-2.0
"""Training starts from the tokens that preflight made, and ends as if it had made them itself."""

import datetime
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers.utils import chat_template_utils

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import PreflightResult, StageResult, TrainResult
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.rows import Row
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.store import DerivedRef
from finetune_trainer.tokens.encoding import RowEncoder
from tests.methods import method_of
from tests.trainer.workbench import PAIRS, ROWS, RUN, Sheet, Workbench, elsewhere
from tools.models import tiny

DATED = (
    "{{ strftime_now('%d %B %Y') }}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def preflight(bench: Workbench, dataset: Digest, method: Method, base: Path | None = None) -> PreflightResult:
    """Run preflight and store its result, as its process does."""
    result = bench.preflight(base, dataset, method=method, hyperparameters={"max_sequence_length": 64})
    bench.store.write_result(StageResult(stage="preflight", run=RUN, outcome="Succeeded", preflight=result))
    return result


def run_of(
    bench: Workbench, type_: str, rows: Sequence[Row] = ROWS, base: Path | None = None
) -> tuple[TrainConfig, DerivedRef]:
    """A run after its preflight, and the tokens of its rows."""
    method = method_of(type_, lora=LoRA(r=4, alpha=8, dropout=0.1))
    dataset = bench.dataset(rows, rows[:5])
    result = preflight(bench, dataset, method, base)
    assert result.tokens is not None
    config = bench.train_config(result.base_model, dataset, method=method)
    return config, DerivedRef(ArtifactRef(kind="datasets", digest=dataset), result.tokens)


def untokenized(bench: Workbench, config: TrainConfig) -> TrainConfig:
    """The same run in another store, which has no result of preflight."""
    other = elsewhere(bench, "untokenized")
    for kind in ("models", "datasets"):
        shutil.copytree(bench.root / "store" / kind, other.root / "store" / kind)
    return config.model_copy(update={"store": other.store_config})


@pytest.mark.parametrize(("method", "rows"), [("LoRA", ROWS), ("DPO", PAIRS)], ids=["LoRA", "DPO"])
def test_tokens_of_preflight_train_the_same_weights(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, method: str, rows: Sequence[Row]
) -> None:
    config, _ = run_of(bench, method, rows)
    own = untokenized(bench, config)
    expected = Workbench(Path(own.store.path).parent).train(own)
    monkeypatch.setattr(RowEncoder, "encode_batch", lambda *_: pytest.fail("a row was tokenized"))

    assert bench.train(config) == expected
    assert expected.validation_loss is not None


def test_a_template_that_writes_the_date_resumes_exactly_on_another_day(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(tiny(), bench.root / "dated"))
    (base / "chat_template.jinja").write_text(DATED)
    set_date(monkeypatch, datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC))
    config, _ = run_of(bench, "LoRA", base=base)
    own = untokenized(bench, config)
    expected = Workbench(Path(own.store.path).parent).train(own)

    with pytest.raises(Preempted):
        bench.train(config, Sheet(stop_at=frozenset({2})))
    set_date(monkeypatch, datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC))

    resumed = bench.train(config)
    assert without_probes(resumed) == without_probes(expected.model_copy(update={"restarts": 1}))


def without_probes(result: TrainResult) -> TrainResult:
    """The result without the digests of the probes, whose prompts have the date in them."""
    checkpoints = (each.model_copy(update={"probe": None}) for each in result.checkpoints)
    return result.model_copy(update={"checkpoints": tuple(checkpoints)})


def set_date(monkeypatch: pytest.MonkeyPatch, now: datetime.datetime) -> None:
    """Set the date that chat templates write."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return now.astimezone(tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def test_deleted_tokens_are_made_again(bench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    config, tokens = run_of(bench, "LoRA")
    shutil.rmtree(bench.store.artifact(tokens))

    with caplog.at_level(logging.WARNING):
        assert bench.train(config).steps == config.hyperparameters.total_steps

    assert "was deleted: the rows are tokenized again" in caplog.text


def test_changed_tokens_are_refused(bench: Workbench) -> None:
    config, tokens = run_of(bench, "LoRA")
    file = bench.store.artifact(tokens) / "train" / "input_ids.int32"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)

    failure = bench.train_failure(config)

    assert failure.reason == FailureReason.ARTIFACT_CORRUPT
    assert "/derived/" in failure.message
    assert failure.message.count("train/input_ids.int32") == 1


def test_tokens_go_with_their_dataset(bench: Workbench) -> None:
    _, tokens = run_of(bench, "LoRA")
    assert bench.store.has(tokens)

    bench.store.delete(tokens.of)

    assert not bench.store.has(tokens)
    assert not list((bench.root / "store" / "datasets").iterdir())
