# SPDX-License-Identifier: Apache-2.0
"""Loading of models: valid ones are served, and invalid ones end the server with the reason."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MambaConfig, MambaForCausalLM

from finetune_trainer.contract.serving import ServeConfig, ServedModel
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.generation import GenerationBatch
from finetune_trainer.model.probe import compute_probe
from finetune_trainer.model.probe_record import PROBE_FILE, ProbeRecord
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve import loading
from finetune_trainer.serve.loading import load
from finetune_trainer.serve.prompts import Prompts
from finetune_trainer.serve.self_test import NO_RECORDS, generate_one_token_each
from finetune_trainer.serve.served_models import probe_folder, served_names
from tests.trainer.serve.endpoint import serve_config, served_here
from tests.trainer.serve.models import Oracle
from tests.trainer.test_train_memory import gpu_is_full

ADAPTER = "llama-tickets.v1"


@pytest.fixture
def own(root: Path, tmp_path: Path) -> Path:
    """Copies of the Llama and of one adapter, for tests to damage."""
    for name in ("llama", ADAPTER):
        shutil.copytree(root / name, tmp_path / name)
    return tmp_path


def start(config: ServeConfig, records: Mapping[str, ProbeRecord] = NO_RECORDS) -> None:
    served = load(config)
    prompts = Prompts(served.tokenizer, served.context_length, served.vocabulary)
    generate_one_token_each(served, prompts, records)


def failure(root: Path, **settings: Any) -> StageFailure:
    """Return the failure of loading; by default with the one adapter."""
    models = (ServedModel(name="tickets", folder=ADAPTER),)
    with pytest.raises(StageFailure) as failed:
        start(serve_config(root, **{"models": models, **settings}))
    return failed.value


def test_a_full_model_takes_the_place_of_the_base(root: Path, own: Path) -> None:
    weights = load_file(own / "llama" / "model.safetensors")
    save_file(
        {name: tensor * 1.5 for name, tensor in weights.items()},
        own / "llama" / "model.safetensors",
        metadata={"format": "pt"},
    )
    shutil.move(own / "llama", own / "tuned")
    tuned = AutoModelForCausalLM.from_pretrained(own / "tuned")
    oracle = Oracle(root, "llama")
    prompt = oracle.chat("Hello")
    expected = tuned.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]

    full = (ServedModel(name="tickets", folder="tuned", type="Full"),)
    with served_here(serve_config(own, models=full)) as endpoint:
        answer = endpoint.openai.chat.completions.create(
            model="tickets", messages=[{"role": "user", "content": "Hello"}], temperature=0, max_tokens=12
        )
        models = [(card.id, card.model_extra) for card in endpoint.openai.models.list()]

    assert answer.choices[0].message.content == oracle.text(expected.tolist())
    assert [name for name, _ in models] == ["tickets"]
    assert models[0][1] is not None
    assert models[0][1]["parent"] is None


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([("base", "Adapter")], "'base' is the name of the base model"),
        ([("a", "Adapter"), ("a", "Adapter")], "'a' occurs twice"),
        ([("a", "Full"), ("b", "Adapter")], "serve it alone"),
    ],
)
def test_names_that_cannot_be_served_together_are_refused(
    tmp_path: Path, models: list[tuple[str, Any]], message: str
) -> None:
    config = serve_config(
        tmp_path, models=tuple(ServedModel(name=name, folder=name, type=kind) for name, kind in models)
    )

    with pytest.raises(StageFailure, match=message) as failed:
        served_names(config)

    assert failed.value.reason == FailureReason.INVALID_CONFIG


def test_a_missing_base_model_is_named(tmp_path: Path) -> None:
    failed = failure(tmp_path, models=())

    assert failed.reason == FailureReason.BASE_MODEL_NOT_FOUND
    assert str(tmp_path / "llama") in failed.message


def test_a_file_that_an_adapter_lacks_is_named(own: Path) -> None:
    (own / ADAPTER / "adapter_model.safetensors").rename(own / ADAPTER / "adapter_model.bin")

    failed = failure(own)

    assert failed.reason == FailureReason.ARTIFACT_NOT_FOUND
    assert "adapter_model.safetensors is missing" in failed.message
    assert "'tickets'" in failed.message


@pytest.mark.parametrize("file", ["chat_template.jinja", "generation_config.json"])
def test_an_adapter_without_what_its_prompts_need_is_refused_by_name(own: Path, file: str) -> None:
    (own / ADAPTER / file).unlink()

    failed = failure(own)

    assert failed.reason == FailureReason.ARTIFACT_CORRUPT
    assert failed.message.startswith(f"model 'tickets' has no {file}, so its prompts")


def test_an_adapter_of_another_base_model_does_not_fit(root: Path) -> None:
    failed = failure(root, models=(ServedModel(name="tickets", folder="gemma-summaries"),))

    assert failed.reason == FailureReason.ARTIFACT_CORRUPT
    assert "'tickets'" in failed.message
    assert "size mismatch" in failed.message


def test_an_adapter_with_weights_that_would_do_nothing_does_not_fit(own: Path) -> None:
    path = own / ADAPTER / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name.replace("self_attn", "attention"): tensor for name, tensor in weights.items()}, path)

    failed = failure(own)

    assert failed.reason == FailureReason.ARTIFACT_CORRUPT
    assert "layers.0.attention.k_proj" in failed.message


def test_a_cut_adapter_file_does_not_fit(own: Path) -> None:
    path = own / ADAPTER / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    assert failure(own).reason == FailureReason.ARTIFACT_CORRUPT


def test_a_method_whose_rows_cannot_share_a_batch_is_refused(own: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(own / "llama")
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(str(own / ADAPTER))

    failed = failure(own)

    assert failed.reason == FailureReason.INVALID_CONFIG
    assert "serve that as Full" in failed.message


def test_a_model_without_keys_and_values_is_refused(root: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(root / "llama")
    config = MambaConfig(vocab_size=512, hidden_size=32, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")

    failed = failure(tmp_path, models=())

    assert failed.reason == FailureReason.BASE_MODEL_INVALID
    assert "VLLM" in failed.message


def test_weights_that_give_no_numbers_are_found_before_the_first_request(own: Path) -> None:
    path = own / "llama" / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})

    failed = failure(own)

    assert failed.reason == FailureReason.BASE_MODEL_INVALID
    assert "not finite" in failed.message


def test_an_adapter_that_changes_no_logit_is_refused(own: Path) -> None:
    file = own / ADAPTER / "adapter_model.safetensors"
    tensors = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})

    found = failure(own)

    assert found.reason == FailureReason.ARTIFACT_CORRUPT
    assert "model 'tickets': its adapter changes nothing" in found.message


def test_the_context_is_the_smaller_of_the_config_s_and_the_model_s(own: Path) -> None:
    assert load(serve_config(own, models=())).context_length == 512
    assert load(serve_config(own, models=(), max_model_length=100)).context_length == 100
    config = own / "llama" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 64}))
    assert load(serve_config(own, models=())).context_length == 64


def test_a_model_that_exceeds_the_memory_of_a_device_is_refused_with_the_field_to_raise(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_placed", lambda *_: gpu_is_full())

    refused = failure(root)

    assert refused.reason == FailureReason.OUT_OF_MEMORY
    assert refused.message.startswith("loading the model ran out of memory on cpu")
    assert "Raise spec.compute.devices of the endpoint" in refused.message


def test_the_engine_answers_as_on_one_device(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers() -> torch.Tensor:
        served = load(serve_config(root))
        batch = GenerationBatch(served.model, mixed=served.mixed)
        first = batch.join([[5, 6, 7], [8]], list(served.adapters.values())[:2])
        second = batch.step([9, 10])
        batch.keep([1])
        return torch.cat([first, second, batch.step([11])])

    expected = answers()
    monkeypatch.setattr(loading, "visible_devices", lambda: (torch.device("cpu"),) * 2)

    assert torch.equal(answers(), expected)


@pytest.fixture(scope="module")
def record(root: Path) -> ProbeRecord:
    """What the adapter predicted when it was published."""
    base = AutoModelForCausalLM.from_pretrained(root / "llama")
    model = PeftModel.from_pretrained(base, str(root / ADAPTER)).eval()
    found = compute_probe(model, [[5, 6, 7], [8, 9]], 0)
    assert found is not None
    return found


def of_the_base(record: ProbeRecord) -> ProbeRecord:
    """The record of another model."""
    return record.model_copy(update={"tuned": record.base})


def served(root: Path) -> ServeConfig:
    return serve_config(root, models=(ServedModel(name="tickets", folder=ADAPTER),))


def test_an_adapter_that_predicts_what_was_recorded_is_served(root: Path, record: ProbeRecord) -> None:
    start(served(root), {"tickets": record})


def test_an_adapter_that_differs_from_its_record_ends_the_server(root: Path, record: ProbeRecord) -> None:
    with pytest.raises(StageFailure, match="the weights do not predict what was recorded") as caught:
        start(served(root), {"tickets": of_the_base(record)})
    assert caught.value.reason == FailureReason.ARTIFACT_CORRUPT
    assert caught.value.message.startswith("model 'tickets': ")


def test_a_record_of_another_device_is_only_reported(
    root: Path, record: ProbeRecord, caplog: pytest.LogCaptureFixture
) -> None:
    other = of_the_base(record).model_copy(update={"device": "cuda"})
    with caplog.at_level(logging.WARNING):
        start(served(root), {"tickets": other})
    assert "It is served: no tolerance was measured for this combination" in caplog.text


def test_a_server_reads_the_records_that_were_fetched(own: Path, record: ProbeRecord) -> None:
    folder = probe_folder(own, ADAPTER)
    folder.mkdir(parents=True)
    (folder / PROBE_FILE).write_text(of_the_base(record).model_dump_json())
    with pytest.raises(StageFailure, match="do not predict what was recorded"), served_here(served(own)):
        pass
