# SPDX-License-Identifier: Apache-2.0
"""Answers of a model in an evaluation: the same in any batch, with the settings of an endpoint."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from finetune_trainer.contract.evaluation import GenerationSettings
from finetune_trainer.evaluate import measured_model
from finetune_trainer.evaluate.measured_model import AnswerGenerator, AnswerRequest, GeneratedAnswer
from finetune_trainer.model.loading import load_base
from finetune_trainer.tokens.chat_template import stop_token_ids
from tests.trainer.test_evaluate_memory import Evaluated
from tests.trainer.workbench import ROWS, tiny_tokenizer
from tools.models import tiny

GREEDY = GenerationSettings()
SAMPLED = GenerationSettings(temperature=1.5, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded = load_base(tiny(), None, torch.device("cpu"))
    loaded.train(mode=False)
    return loaded


@pytest.fixture(scope="module")
def requests() -> list[AnswerRequest]:
    """Prompts and answers of different lengths, and one row without room for an answer."""
    prompts = [
        tiny_tokenizer()(f"<user>{row.messages[0].content * (1 + number % 3)}", add_special_tokens=False)
        for number, row in enumerate(ROWS)
    ]
    rows = [
        AnswerRequest(number, prompt["input_ids"], max_tokens=3 + 5 * (number % 4))
        for number, prompt in enumerate(prompts, 1)
    ]
    return [*rows, replace(rows[0], row=len(rows) + 1, max_tokens=0)]


def generator(
    model: PreTrainedModel, settings: GenerationSettings = GREEDY, stop_ids: frozenset[int] = frozenset()
) -> AnswerGenerator:
    stops = stop_ids or frozenset(stop_token_ids(tiny_tokenizer(), model.generation_config))
    return AnswerGenerator(model, tiny_tokenizer(), settings, stop_ids=stops, on_token=lambda: None)


def alone(answering: AnswerGenerator, requests: list[AnswerRequest]) -> list[GeneratedAnswer]:
    return [answer for request in requests for answer in answering.generate([request])]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_row_has_the_same_answer_alone_and_in_any_batch(
    model: PreTrainedModel, requests: list[AnswerRequest], settings: GenerationSettings
) -> None:
    answering = generator(model, settings)
    expected = alone(answering, requests)

    assert answering.generate(requests) == expected
    assert answering.generate(requests[::-1]) == expected[::-1]
    assert [answer.num_tokens for answer in expected][-1] == 0


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_layers_whose_rows_cannot_leave_a_batch_give_the_same_answers(
    model: PreTrainedModel,
    requests: list[AnswerRequest],
    settings: GenerationSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = generator(model, settings).generate(requests)
    monkeypatch.setattr(measured_model, "can_leave_batch", lambda _: False)

    assert generator(model, settings).generate(requests) == expected


def test_greedy_answers_are_those_of_transformers(
    model: PreTrainedModel, requests: list[AnswerRequest]
) -> None:
    request = requests[3]
    stops = stop_token_ids(tiny_tokenizer(), model.generation_config)

    output: Any = model.generate(  # type: ignore[operator]
        torch.tensor([request.prompt]),
        do_sample=False,
        max_new_tokens=request.max_tokens,
        eos_token_id=stops,
        pad_token_id=0,
    )

    ids = [token for token in output[0, len(request.prompt) :].tolist() if token not in stops]
    (answer,) = generator(model).generate([request])
    assert answer.num_tokens == len(ids)
    assert answer.text == str(tiny_tokenizer().decode(ids, skip_special_tokens=True)).strip()


def test_a_stop_token_ends_one_answer_and_not_the_others(
    model: PreTrainedModel, requests: list[AnswerRequest]
) -> None:
    """The token that one row generates second ends its answer."""
    free = generator(model)
    prompt = torch.tensor([requests[1].prompt])
    output: Any = model.generate(prompt, do_sample=False, max_new_tokens=2, pad_token_id=0)  # type: ignore[operator]
    stop = int(output[0, -1])

    answers = generator(model, stop_ids=frozenset({stop})).generate(requests)

    assert (answers[1].num_tokens, answers[1].finish_reason) == (1, "stop")
    expected = free.generate(requests)
    assert any(answer == before for answer, before in zip(answers, expected, strict=True))


def test_another_seed_or_another_row_draws_other_tokens(
    model: PreTrainedModel, requests: list[AnswerRequest]
) -> None:
    long = replace(requests[0], max_tokens=30)
    other_row = replace(long, row=2)
    drawn = {answer.text for answer in generator(model, SAMPLED).generate([long, other_row])}
    reseeded = generator(model, SAMPLED.model_copy(update={"seed": 4})).generate([long])[0].text

    assert len(drawn | {reseeded}) == 3


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_an_answer_ends_where_the_model_overflows(
    model: PreTrainedModel, requests: list[AnswerRequest], settings: GenerationSettings
) -> None:
    expected = generator(model, settings).generate(requests[:3])

    def overflow(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if len(output.logits) == 3:
            output.logits[2] = torch.nan

    hook = model.register_forward_hook(overflow)
    try:
        answers = generator(model, settings).generate(requests[:3])
    finally:
        hook.remove()

    assert answers[:2] == expected[:2]
    assert (answers[2].num_tokens, answers[2].finish_reason) == (0, "length")
    assert [answer.is_finite for answer in answers] == [True, True, False]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    return Evaluated(tmp_path_factory.mktemp("generation"))


def test_a_limit_of_the_run_replaces_the_length_of_the_correct_answer(evaluated: Evaluated) -> None:
    short = evaluated.lines(evaluated.new_run("short", generation=GenerationSettings(max_tokens=2)))
    default = evaluated.lines(evaluated.new_run("default"))
    free = evaluated.lines(evaluated.new_run("free", generation=GenerationSettings(max_tokens=60)))

    assert {line["tokens"] for line in short} == {2}
    assert max(line["tokens"] for line in default) < max(line["tokens"] for line in free) == 60
    assert all(line["seconds"] > 0 for line in free)


def test_sampled_predictions_do_not_depend_on_the_batch_size(evaluated: Evaluated) -> None:
    settings = {"generation": SAMPLED, "metrics": ("exact_match",)}
    first = evaluated.lines(evaluated.new_run("batches of 8", **settings))
    second = evaluated.lines(evaluated.new_run("batches of 2", batch_size=2, **settings))

    assert {line.pop("seconds") > 0 for line in (*first, *second)} == {True}
    key = lambda line: (line["subject"], line["row"])  # noqa: E731
    assert sorted(first, key=key) == sorted(second, key=key)
