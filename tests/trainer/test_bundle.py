"""Checkpoints with the files of their bundle: plain PEFT and transformers use them as our engine does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from finetune_trainer.contract.configs.serve import ServeConfig, ServedModel
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.serve.batch import GenerationBatch
from finetune_trainer.serve.loading import load
from finetune_trainer.serve.prompts import Prompts
from finetune_trainer.serve.requests import ChatMessage
from finetune_trainer.tokens.chattemplate import load_tokenizer, stop_token_ids
from finetune_trainer.train.states.weights import bundle_of
from tests.trainer.workbench import OWNER, ROWS, Workbench
from tools.models import tiny

FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "generation_config.json",
    "manifest.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
QUESTION = ROWS[0].messages[0].content
MAX_TOKENS = 12


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def whole(folder: Path) -> Path:
    return Path(shutil.copytree(tiny(), folder))


def without_template(folder: Path) -> Path:
    """A base model as published before its chat model: no template."""
    (whole(folder) / "chat_template.jinja").unlink()
    return folder


def with_gemma_tokens(folder: Path) -> Path:
    """A base model without template whose answers end with a token that is not the end of the sequence."""
    tokenizer: Any = AutoTokenizer.from_pretrained(whole(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    torch.manual_seed(3)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


class Trained:
    """An adapter that knows its rows by heart, and copies of it and of its base model in one folder."""

    def __init__(self, bench: Workbench, base: Path, lora: LoRA) -> None:
        self.digest = bench.model(base)
        config = bench.train_config(
            self.digest,
            method=Method(lora=lora),
            epochs=40,
            learning_rate=2e-2,
            per_device_batch_size=6,
            gradient_accumulation_steps=1,
        )
        self.folder = bench.root / "models"
        stored = bench.store.artifact(ArtifactRef(kind="models", digest=self.digest))
        self.base = Path(shutil.copytree(stored, self.folder / "base"))
        self.adapter = Path(
            shutil.copytree(bench.checkpoint(bench.train(config).checkpoints[-1]), self.folder / "tickets")
        )

    def with_peft(self) -> dict[str, list[int]]:
        """Answers of plain PEFT and transformers, from the adapter's folder and the base model alone."""
        tokenizer: Any = AutoTokenizer.from_pretrained(self.adapter)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": QUESTION}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        model: Any = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(self.base), str(self.adapter)
        )
        settings = GenerationConfig.from_pretrained(self.adapter, max_new_tokens=MAX_TOKENS, do_sample=False)

        def answer() -> list[int]:
            output = model.eval().generate(**prompt, generation_config=settings)
            ids: list[int] = output[0, prompt["input_ids"].shape[1] :].tolist()
            return ids

        with model.disable_adapter():
            of_base = answer()
        return {"base": of_base, "tickets": answer()}

    def with_our_engine(self) -> dict[str, list[int]]:
        """Answers of the built-in engine, from the same folders."""
        served = load(
            ServeConfig(
                owner=OWNER,
                base_folder="base",
                models=(ServedModel(name="tickets", folder="tickets"),),
                models_path=str(self.folder),
            )
        )
        prompts = Prompts(served.tokenizer, served.context_length, served.vocabulary)
        prompt = prompts.of_chat([ChatMessage(role="user", content=QUESTION)], "tickets")

        def answer(name: str) -> list[int]:
            batch = GenerationBatch(served.model, mixed=served.mixed)
            ids = [int(batch.join([prompt], [served.adapters[name]])[0].argmax())]
            while ids[-1] not in served.stop_ids and len(ids) < MAX_TOKENS:
                ids.append(int(batch.step(ids[-1:])[0].argmax()))
            return ids

        return {name: answer(name) for name in ("base", "tickets")}


@pytest.mark.parametrize(
    ("base", "rslora", "end"),
    [
        (whole, False, "</s>"),
        (without_template, True, "</s>"),
        (with_gemma_tokens, False, "<end_of_turn>"),
    ],
)
def test_plain_peft_answers_as_our_engine(
    bench: Workbench, base: Callable[[Path], Path], rslora: bool, end: str
) -> None:
    source = base(bench.root / "source")
    trained = Trained(bench, source, LoRA(r=8, alpha=16, dropout=0, rslora=rslora))

    answers = trained.with_peft()

    assert answers == trained.with_our_engine()
    assert answers["tickets"] != answers["base"]
    assert {path.name for path in trained.adapter.iterdir()} == FILES
    tokenizer: Any = AutoTokenizer.from_pretrained(trained.adapter)
    expected = load_tokenizer(source)
    assert type(tokenizer) is type(expected)
    assert tokenizer.get_vocab() == expected.get_vocab()
    assert tokenizer.chat_template == expected.chat_template
    stop_ids = GenerationConfig.from_pretrained(trained.adapter).eos_token_id
    assert stop_ids == stop_token_ids(expected, None)
    assert str(tokenizer.decode(answers["tickets"], skip_special_tokens=True)).strip() == ROWS[0].output
    assert tokenizer.convert_ids_to_tokens(answers["tickets"][-1]) == end
    settings = json.loads((trained.adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == trained.digest


def test_the_best_and_the_kept_weights_bring_their_bundle_too(bench: Workbench) -> None:
    config = bench.train_config(dataset=bench.dataset(ROWS, ROWS[:4]), keep_steps=(2, 4))

    checkpoints = bench.train(config).checkpoints

    assert len(checkpoints) == 3
    assert all({path.name for path in bench.checkpoint(each).iterdir()} == FILES for each in checkpoints)


def test_a_resume_state_holds_no_bundle(bench: Workbench) -> None:
    config = bench.train_config()
    bench.train(config)

    folder = bench.store.run_folder(config.run, "train")
    names = {path.name for state in folder.path.glob("state/*") for path in state.iterdir()}

    assert "adapter_model.safetensors" in names
    assert not names & (FILES - {"adapter_config.json", "adapter_model.safetensors", "manifest.json"})


def test_a_tokenizer_class_that_only_the_models_config_tells_is_named(tmp_path: Path) -> None:
    """transformers chooses the class by the config's model type, and an adapter has no config.json."""
    base = whole(tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    del settings["tokenizer_class"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tokenizer_class": "Qwen2Tokenizer"}))
    expected = load_tokenizer(base)

    (tmp_path / "adapter").mkdir()
    bundle_of(base, expected).write(tmp_path / "adapter")

    assert type(AutoTokenizer.from_pretrained(tmp_path / "adapter")) is type(expected)
    assert type(expected).__name__ == "Qwen2Tokenizer"
    assert settings.items() < json.loads((tmp_path / "adapter" / "tokenizer_config.json").read_text()).items()
