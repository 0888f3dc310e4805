# SPDX-License-Identifier: Apache-2.0
"""The result of training on a few rows, and its form."""

import itertools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.results import TrainResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.model.loading import load_adapter, load_base
from finetune_trainer.rows import Row
from finetune_trainer.tokens.chat_template import load_tokenizer, stop_token_ids, template_name
from finetune_trainer.train.model_setup import trainable_model
from finetune_trainer.train.states.weights import training_weights
from tests.trainer.workbench import ROWS, Sheet, Workbench, elsewhere, weights
from tools.models import tiny

FULL = Method(type="Full")
WITHOUT_DROPOUT = Method(lora=LoRA(r=4, alpha=8, dropout=0))


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.mark.parametrize("method", [Method(lora=LoRA(r=4, alpha=8, dropout=0.1)), FULL])
def test_equal_runs_make_equal_checkpoints(bench: Workbench, method: Method) -> None:
    first, second = elsewhere(bench, "first"), elsewhere(bench, "second")

    results = [store.train(store.train_config(method=method)) for store in (first, second)]

    assert results[0] == results[1]
    assert results[0].checkpoints[0].type == ("Full" if method == FULL else "Adapter")


def test_another_seed_makes_another_checkpoint(bench: Workbench) -> None:
    first, second = elsewhere(bench, "first"), elsewhere(bench, "second")

    one = first.train(first.train_config(seed=1)).checkpoints[0].digest
    other = second.train(second.train_config(seed=2)).checkpoints[0].digest

    assert one != other


def test_every_step_of_the_config_is_trained_and_reported(bench: Workbench) -> None:
    config, sheet = bench.train_config(), Sheet()

    result = bench.train(config, sheet)

    assert result.steps == config.hyperparameters.total_steps == 6
    assert [progress.step for progress in sheet.seen] == list(range(1, 7))
    assert [progress.epoch for progress in sheet.seen] == [0.333, 0.667, 1, 1.333, 1.667, 2]
    assert result.restarts == 0


def test_an_adapter_names_its_base_model_by_digest(bench: Workbench) -> None:
    config = bench.train_config()

    folder = bench.checkpoint(bench.train(config).checkpoints[0])

    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == config.base_model
    assert settings["r"] == 4
    assert settings["lora_alpha"] == 8
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not any(str(bench.root).encode() in path.read_bytes() for path in files)


def test_all_linear_layers_but_the_head_are_adapted(bench: Workbench) -> None:
    tensors = weights(bench.checkpoint(bench.train(bench.train_config()).checkpoints[0]))

    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in tensors}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("variant", ["rslora", "dora"])
def test_an_adapter_says_which_variant_of_lora_it_is(bench: Workbench, variant: str) -> None:
    lora = LoRA(r=4, alpha=8, dropout=0.1, rslora=variant == "rslora", dora=variant == "dora")
    method = Method(lora=lora)

    folder = bench.checkpoint(bench.train(bench.train_config(method=method)).checkpoints[0])

    settings = json.loads((folder / "adapter_config.json").read_text())
    assert {name for name in ("use_rslora", "use_dora") if settings[name]} == {f"use_{variant}"}
    assert any("magnitude" in name for name in weights(folder)) == (variant == "dora")


def test_the_rank_weighs_less_in_rslora(bench: Workbench) -> None:
    """The adapter of the first step is zero, so its loss does not depend on the scaling."""
    losses = []
    for name, lora in (("plain", LoRA(r=4, alpha=8)), ("rank-stabilised", LoRA(r=4, alpha=8, rslora=True))):
        store, sheet = elsewhere(bench, name), Sheet()
        store.train(store.train_config(method=Method(lora=lora)), sheet)
        losses.append([progress.loss for progress in sheet.seen])

    plain, stabilised = losses
    assert plain[0] == stabilised[0]
    assert plain[1:] != stabilised[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_dora_adapter_says_what_the_model_in_training_says(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    source = tmp_path / "base"
    shutil.copytree(tiny(), source)
    load_base(tiny(), dtype, torch.device("cpu")).save_pretrained(source)
    method = Method(lora=LoRA(r=4, alpha=8, dropout=0.1, dora=True))
    torch.manual_seed(5)
    trained = trainable_model(source, method, torch.device("cpu"))
    for name, parameter in trained.named_parameters():
        if "magnitude" in name:
            parameter.data *= torch.empty_like(parameter).uniform_(0.5, 2)
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    training_weights(trained, "sha256:" + 64 * "0", source).write(adapter)
    ids = torch.tensor([[1, 5, 6, 9]])

    loaded = load_adapter(load_base(source, None, torch.device("cpu")), adapter)

    with torch.inference_mode():
        expected = trained.eval()(input_ids=ids).logits.float()
        actual = loaded(input_ids=ids).logits.float()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (actual - expected).norm() <= tolerance * expected.norm()


def test_only_the_wanted_layers_are_adapted(bench: Workbench) -> None:
    method = Method(lora=LoRA(r=2, target_modules=("v_proj", "q_proj")))

    tensors = weights(bench.checkpoint(bench.train(bench.train_config(method=method)).checkpoints[0]))

    assert {name.split(".lora_")[0].rpartition(".")[2] for name in tensors} == {"q_proj", "v_proj"}


def test_an_adapter_changes_what_its_base_model_says(bench: Workbench) -> None:
    folder = bench.checkpoint(bench.train(bench.train_config()).checkpoints[0])
    ids = torch.tensor([[1, 5, 6]])
    base = load_base(tiny(), None, torch.device("cpu"))
    with torch.inference_mode():
        before = base(input_ids=ids).logits

        tuned = load_adapter(base, folder)

        assert isinstance(tuned, PeftModel)
        assert not torch.equal(tuned(input_ids=ids).logits, before)


def test_a_full_checkpoint_is_a_model_of_its_own(bench: Workbench) -> None:
    folder = bench.checkpoint(bench.train(bench.train_config(method=FULL)).checkpoints[0])

    tokenizer = load_tokenizer(folder)
    model = load_base(folder, None, torch.device("cpu"))
    assert (folder / "config.json").read_bytes() == (tiny() / "config.json").read_bytes()
    assert template_name(tokenizer) == "model"
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == stop_token_ids(tokenizer, None)
    before = load_base(tiny(), None, torch.device("cpu")).state_dict()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(before)


def test_a_full_checkpoint_brings_the_template_that_the_trainer_supplied(bench: Workbench) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    (source / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": None}))

    result = bench.train(bench.train_config(bench.model(source), method=FULL))

    assert "### Assistant:" in load_tokenizer(bench.checkpoint(result.checkpoints[0])).get_chat_template()


@pytest.mark.parametrize("method", [WITHOUT_DROPOUT, FULL])
def test_tied_and_16_bit_weights_are_trained_and_published_as_they_were(
    bench: Workbench, method: Method
) -> None:
    model = load_base(tiny(), torch.bfloat16, torch.device("cpu"))
    model.config.tie_word_embeddings = True
    model.tie_weights()
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    (source / "model.safetensors").unlink()
    model.save_pretrained(source)

    result = bench.train(bench.train_config(bench.model(source), method=method))

    tensors = weights(bench.checkpoint(result.checkpoints[0]))
    assert not any("lm_head" in name for name in tensors)
    expected = torch.bfloat16 if method == FULL else torch.float32
    assert {tensor.dtype for tensor in tensors.values()} == {expected}


def test_accumulated_batches_train_as_one_large_batch(bench: Workbench) -> None:
    """Although their rows have different numbers of tokens."""
    rows = [Row.pair(row.messages[0].content, "ship " * (1 + index)) for index, row in enumerate(ROWS)]

    def trained(name: str, max_rows: int) -> dict[str, torch.Tensor]:
        store = elsewhere(bench, name)
        config = store.train_config(
            dataset=store.dataset(rows),
            method=WITHOUT_DROPOUT,
            max_batch_rows=max_rows,
        )
        return weights(store.checkpoint(store.train(config).checkpoints[0]))

    large, accumulated = trained("large", 4), trained("accumulated", 1)

    for name, tensor in large.items():
        torch.testing.assert_close(accumulated[name], tensor, rtol=1e-3, atol=1e-5)


def test_without_validation_the_final_weights_are_the_best_known(bench: Workbench) -> None:
    (only,) = bench.train(bench.train_config()).checkpoints

    assert only.best
    assert only.final
    assert only.step == 6
    assert only.epoch == 2
    assert only.validation_loss is None


def trained_hard(bench: Workbench, validation: Sequence[Row]) -> TrainResult:
    return bench.train(
        bench.train_config(
            dataset=bench.dataset(ROWS, validation),
            method=Method(lora=LoRA(r=8, alpha=16, dropout=0)),
            epochs=6,
            learning_rate=2e-2,
            batch_size=4,
        )
    )


def test_weights_that_are_final_and_best_are_published_once(bench: Workbench) -> None:
    (only,) = trained_hard(bench, ROWS[:4]).checkpoints

    assert only.best
    assert only.final
    assert only.validation_loss is not None


def test_the_weights_before_overfitting_are_published_beside_the_final_ones(bench: Workbench) -> None:
    contradictions = [
        Row.pair(row.messages[0].content, other.output) for row, other in itertools.pairwise(ROWS[:5])
    ]

    best, final = trained_hard(bench, contradictions).checkpoints

    assert best.best
    assert not best.final
    assert final.final
    assert not final.best
    assert best.step < final.step
    assert best.validation_loss is not None
    assert final.validation_loss is not None
    assert best.validation_loss < final.validation_loss
    assert bench.checkpoint(best) != bench.checkpoint(final)


def test_a_loss_that_is_not_a_number_ends_the_run_before_it_spoils_the_weights(bench: Workbench) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    tensors = weights(source)
    tensors["lm_head.weight"][5] = torch.nan
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})

    failure = bench.train_failure(bench.train_config(bench.model(source)))

    assert failure.reason == FailureReason.LOSS_NOT_FINITE
    assert failure.exit_code == ExitCode.BAD_CONFIG
    assert "step 1: the training loss is nan" in failure.message
    assert "the base model" in failure.message


def test_a_learning_rate_that_explodes_ends_the_run_and_names_the_last_good_state(bench: Workbench) -> None:
    config = bench.train_config(method=FULL, learning_rate=1e30, save_every_steps=1)

    failure = bench.train_failure(config)

    assert failure.reason == FailureReason.LOSS_NOT_FINITE
    assert "learningRate below 1e+30" in failure.message
    newest = bench.states(config)[-1]
    assert f"state is {newest.replace('-', ' ')} in" in failure.message


def test_hyperparameters_of_another_dataset_are_refused(bench: Workbench) -> None:
    failure = bench.train_failure(bench.train_config(rows=100))

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert "totalSteps" in failure.message
