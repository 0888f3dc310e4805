# SPDX-License-Identifier: Apache-2.0
"""The probe of published weights: what they predict after the fixed prompts, beside the checkpoint."""

from pathlib import Path

import pytest
import torch

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import CheckpointResult
from finetune_trainer.model.loading import load_adapter, load_base
from finetune_trainer.model.probe import PROMPTS, compute_probe, log_probabilities, probe_prompts
from finetune_trainer.model.probe_record import PROBE_FILE, ProbeRecord, TopTokens
from finetune_trainer.store import DerivedRef
from finetune_trainer.tokens.chat_template import load_tokenizer
from tests.trainer.basemodels import with_reasoning
from tests.trainer.test_train_distributed import pods
from tests.trainer.workbench import ROWS, Workbench, elsewhere, tiny_tokenizer
from tools.models import tiny

CPU = torch.device("cpu")
PAD = tiny_tokenizer().pad_token_id


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def record_of(bench: Workbench, checkpoint: CheckpointResult) -> ProbeRecord:
    assert checkpoint.probe is not None
    of = ArtifactRef(kind="checkpoints", digest=checkpoint.digest)
    folder = bench.store.artifact(DerivedRef(of, checkpoint.probe), verify=True)
    return ProbeRecord.model_validate_json((folder / PROBE_FILE).read_bytes())


def top_of(predicted: torch.Tensor) -> tuple[TopTokens, ...]:
    return tuple(
        TopTokens(ids=ids, log_probabilities=tuple(round(value, 6) for value in values))
        for ids, values in zip(*(each.tolist() for each in reversed(predicted.topk(5))), strict=True)
    )


@pytest.mark.parametrize("method", ["LoRA", "DoRA", "QLoRA"])
def test_the_loaded_adapter_and_its_base_predict_what_was_recorded(bench: Workbench, method: str) -> None:
    lora = LoRA(r=4, alpha=8, dropout=0.1, dora=method == "DoRA")
    config = bench.train_config(method=Method(type="QLoRA" if method == "QLoRA" else "LoRA", lora=lora))

    (checkpoint,) = bench.train(config).checkpoints

    record = record_of(bench, checkpoint)
    assert record.prompts == probe_prompts(tiny_tokenizer())
    assert len(record.prompts) == len(PROMPTS)
    assert (record.engine, record.device) == ("Transformers", "cpu")
    assert record.quantized == (method == "QLoRA")
    assert method == "QLoRA" or record.dtype == "float32"
    assert record.tuned != record.base
    if method == "LoRA":
        loaded = load_adapter(load_base(tiny(), None, CPU), bench.checkpoint(checkpoint)).eval()
        assert record.tuned == top_of(log_probabilities(loaded, record.prompts, PAD))
        assert record.base == top_of(log_probabilities(load_base(tiny(), None, CPU), record.prompts, PAD))


def test_each_published_checkpoint_has_the_probe_of_its_own_weights(bench: Workbench) -> None:
    dataset = bench.dataset(ROWS, ROWS[:4])
    config = bench.train_config(dataset=dataset, keep=2)

    published = bench.train(config).checkpoints

    records = [record_of(bench, each) for each in published]
    assert len(records) >= 3
    assert len({record.tuned for record in records}) == len(records)
    for checkpoint, record in zip(published, records, strict=True):
        folder = bench.checkpoint(checkpoint)
        assert not (folder / PROBE_FILE).exists()
        loaded = load_adapter(load_base(tiny(), None, CPU), folder).eval()
        assert record.tuned == top_of(log_probabilities(loaded, record.prompts, PAD))


def test_the_whole_model_has_a_probe_without_a_base(bench: Workbench) -> None:
    (checkpoint,) = bench.train(bench.train_config(method=Method(type="Full"))).checkpoints

    record = record_of(bench, checkpoint)
    loaded = load_base(bench.checkpoint(checkpoint), None, CPU)
    assert record.base == ()
    assert record.tuned == top_of(log_probabilities(loaded, record.prompts, PAD))


def test_the_probe_goes_with_its_checkpoint(bench: Workbench) -> None:
    (checkpoint,) = bench.train(bench.train_config()).checkpoints
    of = ArtifactRef(kind="checkpoints", digest=checkpoint.digest)
    assert checkpoint.probe is not None

    bench.store.delete(of)

    assert not bench.store.has(DerivedRef(of, checkpoint.probe))


def test_weights_do_not_depend_on_the_probe(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = elsewhere(bench, "with"), elsewhere(bench, "without")
    rows = ROWS, ROWS[:4]
    probed = first.train(first.train_config(dataset=first.dataset(*rows))).checkpoints
    monkeypatch.setattr("finetune_trainer.train.session.probe_prompts", lambda *_: ())

    plain = second.train(second.train_config(dataset=second.dataset(*rows))).checkpoints

    assert [each.probe for each in plain] == [None] * len(plain)
    assert [each.digest for each in probed] == [each.digest for each in plain]


@pytest.mark.parametrize("method", ["LoRA", pytest.param("Full", marks=pytest.mark.full)])
def test_processes_that_share_the_weights_record_what_one_does(tmp_path: Path, method: str) -> None:
    bench = Workbench(tmp_path)
    with pods(bench.root, method=method, settings={"sharded": True}) as two:
        ended = two.run()
        assert [each.code for each in ended] == [0, 0], ended[1].logs
        (checkpoint,) = two.result.checkpoints[-1:]

    record, folder = record_of(bench, checkpoint), bench.checkpoint(checkpoint)
    alone = load_base(folder if method == "Full" else tiny(), None, CPU)
    loaded = alone if method == "Full" else load_adapter(alone, folder).eval()
    predicted = log_probabilities(loaded, record.prompts, PAD)
    for recorded, now in zip(record.tuned, predicted, strict=True):
        torch.testing.assert_close(
            now[list(recorded.ids)], torch.tensor(recorded.log_probabilities), rtol=0, atol=1e-4
        )


def test_a_template_that_rejects_the_prompts_leaves_no_probe() -> None:
    tokenizer = load_tokenizer(tiny())
    tokenizer.chat_template = "{{ raise_exception('needs a system turn') }}"

    assert probe_prompts(tokenizer) == ()


def test_the_prompts_are_those_that_serving_sends(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(with_reasoning(tmp_path / "base"))

    with_thinking, without = (
        probe_prompts(tokenizer, {"enable_thinking": thinks}) for thinks in (True, False)
    )

    assert with_thinking != without
    assert "<think>" in tokenizer.decode(list(without[0]))


def test_predictions_that_are_not_finite_are_not_recorded() -> None:
    model = load_base(tiny(), None, CPU)
    torch.nn.init.constant_(model.lm_head.weight, torch.nan)

    assert compute_probe(model, [[1, 5, 6]], PAD) is None
