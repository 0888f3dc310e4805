# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with the files of their bundle: plain PEFT and transformers use them as our engine does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import CheckpointResult
from finetune_trainer.contract.serving import ServeConfig, ServedModel
from finetune_trainer.model.bundle import BundleUnknown, read_base_bundle
from finetune_trainer.model.generation import GenerationBatch
from finetune_trainer.serve.loading import load
from finetune_trainer.serve.prompts import Prompts
from finetune_trainer.serve.requests import ChatMessage
from finetune_trainer.tokens.chat_template import load_tokenizer, stop_token_ids
from finetune_trainer.train.states.weights import bundle_of
from tests.trainer.basemodels import (
    whole,
    with_gemma_tokens,
    with_the_template_of_a_chat_model,
    without_template,
)
from tests.trainer.plainlibraries import MAX_TOKENS, PlainModel
from tests.trainer.workbench import OWNER, ROWS, Workbench

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


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def files_of(folder: Path) -> set[str]:
    """The files of a checkpoint, without what is derived from it."""
    return {path.name for path in folder.iterdir() if path.is_file()}


class Trained:
    """An adapter that knows its rows by heart, and copies of it and of its base model in one folder."""

    def __init__(self, bench: Workbench, base: Path, lora: LoRA) -> None:
        self.digest = bench.model(base)
        config = bench.train_config(
            self.digest,
            method=Method(lora=lora),
            epochs=40,
            learning_rate=2e-2,
            batch_size=6,
            save_every_steps=1000,
        )
        self.folder = bench.root / "models"
        stored = bench.store.artifact(ArtifactRef(kind="models", digest=self.digest))
        self.base = Path(shutil.copytree(stored, self.folder / "base"))
        self.result = bench.train(config).checkpoints[-1]
        self.adapter = Path(shutil.copytree(bench.checkpoint(self.result), self.folder / "tickets"))

    def with_peft(self) -> dict[str, list[int]]:
        """Answers of plain PEFT and transformers, from the adapter's folder and the base model alone."""
        model = PlainModel(self.base, self.adapter)
        return {"base": model.answer_of_base(QUESTION), "tickets": model.answer(QUESTION)}

    def serve_config(self, *names: str) -> ServeConfig:
        return ServeConfig(
            owner=OWNER,
            base_folder="base",
            models=tuple(ServedModel(name=name, folder=name) for name in names),
            models_path=str(self.folder),
        )

    def with_our_engine(self) -> dict[str, list[int]]:
        """Answers of the built-in engine, from the same folders."""
        served = load(self.serve_config("tickets"))
        prompts = Prompts(
            served.tokenizer, served.context_length, served.vocabulary, chat_templates=served.chat_templates
        )
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
    assert files_of(trained.adapter) == FILES
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
    assert all(files_of(bench.checkpoint(each)) == FILES for each in checkpoints)


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


@pytest.mark.parametrize(
    "base", [whole, without_template, with_gemma_tokens, with_the_template_of_a_chat_model]
)
def test_the_files_of_a_base_model_say_what_a_run_would_publish(
    tmp_path: Path, base: Callable[[Path], Path]
) -> None:
    folder = base(tmp_path / "base")
    expected = bundle_of(folder, load_tokenizer(folder))

    found = read_base_bundle(folder)

    assert (found.chat_template, found.stop_ids) == (expected.chat_template, expected.stop_ids)


def test_a_template_in_the_settings_of_the_tokenizer_is_found(tmp_path: Path) -> None:
    folder = whole(tmp_path / "base")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text()) | {"chat_template": [{"name": "default", "template": template}]}
        )
    )

    assert read_base_bundle(folder).chat_template == template


@pytest.mark.parametrize("template", ["{{ messages[-1]['content'] }}<end>", "{{ eos_token }}"])
def test_a_base_model_that_does_not_say_how_an_answer_ends_is_refused(tmp_path: Path, template: str) -> None:
    folder = whole(tmp_path / "base")
    (folder / "chat_template.jinja").write_text(template)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")

    with pytest.raises(BundleUnknown, match="the base model configures no stop token"):
        read_base_bundle(folder)


def test_an_adapter_is_served_and_evaluated_with_its_own_template(bench: Workbench) -> None:
    """A release may supply another template to the same base model."""
    trained = Trained(bench, without_template(bench.root / "source"), LoRA(r=8, alpha=16, dropout=0))
    template = (trained.adapter / "chat_template.jinja").read_text()
    with bench.store.staging() as staging:
        for name in FILES - {"manifest.json"}:
            shutil.copy(trained.adapter / name, staging)
        (staging / "chat_template.jinja").write_text(template.replace("###", "+++"))
        other = CheckpointResult(
            digest=bench.store.publish("checkpoints", staging), type="Adapter", step=1, epoch=1
        )
    shutil.copytree(bench.checkpoint(other), trained.folder / "other")

    served = load(trained.serve_config("tickets", "other"))
    prompts = Prompts(
        served.tokenizer, served.context_length, served.vocabulary, chat_templates=served.chat_templates
    )
    asked = {
        name: str(
            served.tokenizer.decode(prompts.of_chat([ChatMessage(role="user", content=QUESTION)], name))
        )
        for name in ("base", "tickets", "other")
    }
    assert asked["base"] == asked["tickets"] == asked["other"].replace("+++", "###")
    assert "+++ User" in asked["other"]
    loss = [
        bench.evaluate(trained.digest, bench.dataset(test=ROWS), checkpoint, metrics=("loss",))
        .scores[0]
        .value
        for checkpoint in (trained.result, other)
    ]
    assert loss[0] < loss[1]
