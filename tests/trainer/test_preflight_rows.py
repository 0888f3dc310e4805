# SPDX-License-Identifier: Apache-2.0
"""Lengths of rows in tokens of the base model's tokenizer."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.rows import Message, Row
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.tokens.encoding import RowEncoder
from tests.trainer.workbench import ROWS, RUN, Workbench, tiny_tokenizer
from tools.models import tiny

LONG_PROMPT = Row.pair("where " * 200, "sales")
LONG_ANSWER = Row.pair("where?", "sales " * 100)
SHORT: Final = {"max_sequence_length": 64}
TRUNCATED: Final = {**SHORT, "on_long_rows": "Truncate"}


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def tokens(*rows: Row) -> list[int]:
    encoder = RowEncoder(tiny_tokenizer())
    return [len(encoder.encode(row).input_ids) for row in rows]


def test_rows_and_tokens_are_counted(bench: Workbench) -> None:
    result = bench.preflight(dataset=bench.dataset(ROWS, ROWS[:1], ROWS[1:2]))

    assert result.train_rows == len(ROWS)
    assert result.train_tokens == sum(tokens(*ROWS))
    assert result.longest_row_tokens == max(tokens(*ROWS))
    assert result.truncated_rows == 0


def test_the_longest_row_of_any_split_decides_the_length(bench: Workbench) -> None:
    result = bench.preflight(dataset=bench.dataset(ROWS, (), (LONG_ANSWER,)))

    (longest,) = tokens(LONG_ANSWER)
    assert result.longest_row_tokens == longest
    assert result.hyperparameters.max_sequence_length == -(-longest // 64) * 64


def test_truncated_rows_are_counted(bench: Workbench) -> None:
    result = bench.preflight(dataset=bench.dataset((*ROWS, LONG_ANSWER)), hyperparameters=TRUNCATED)

    assert result.truncated_rows == 1
    assert result.train_tokens == sum(tokens(*ROWS)) + 64


def written(bench: Workbench) -> dict[str, Any]:
    """The report of lengths in tokens."""
    folder = bench.store.run_folder(RUN, "preflight").path
    assert "<svg" in (folder / "tokens.html").read_text()
    report: dict[str, Any] = json.loads((folder / "tokens.json").read_text())
    return report


def test_lengths_in_tokens_are_reported_with_the_truncated_rows(bench: Workbench) -> None:
    result = bench.preflight(dataset=bench.dataset((*ROWS, LONG_ANSWER)), hyperparameters=TRUNCATED)

    report = written(bench)
    (longest,) = tokens(LONG_ANSWER)
    assert result.report_uri == f"pvc://artifacts/runs/{RUN}/preflight/tokens.html"
    assert (report["rows"], report["cutRows"], report["lostAnswers"]) == (len(ROWS) + 1, 1, 0)
    assert report["longest"][0] == {"split": "train", "row": len(ROWS) + 1, "tokens": longest}
    assert sum(bucket["rows"] for bucket in report["lengths"]["histogram"]) == report["rows"]


def test_rows_without_an_answer_left_are_in_the_report_that_the_failure_names(bench: Workbench) -> None:
    failure = bench.preflight_failure(dataset=bench.dataset((*ROWS, LONG_PROMPT)), hyperparameters=TRUNCATED)

    assert written(bench)["lostAnswers"] == 1
    assert failure.message.endswith(f"All lengths: pvc://artifacts/runs/{RUN}/preflight/tokens.html")


def test_rows_that_would_lose_the_whole_answer_are_named_with_the_length_they_need(bench: Workbench) -> None:
    dataset = bench.dataset((*ROWS, LONG_PROMPT), (ROWS[0],), (LONG_PROMPT,))

    failure = bench.preflight_failure(dataset=dataset, hyperparameters=TRUNCATED)

    assert failure.reason == FailureReason.SEQUENCE_TOO_LONG
    assert failure.exit_code == ExitCode.BAD_DATA
    assert "2 rows" in failure.message
    assert "train row 13, test row 1" in failure.message
    assert f"maxSequenceLength to {tokens(LONG_PROMPT)[0]}" in failure.message


def test_a_prompt_beyond_the_models_context_can_only_be_shortened(bench: Workbench) -> None:
    endless = Row.pair("where " * 600, "sales")

    failure = bench.preflight_failure(
        dataset=bench.dataset((*ROWS, endless)), hyperparameters={"on_long_rows": "Truncate"}
    )

    assert failure.reason == FailureReason.SEQUENCE_TOO_LONG
    assert "shorten the prompts, because the context of the base model has only 512 tokens" in failure.message


def test_rows_that_the_chat_template_rejects_are_named(bench: Workbench) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    (source / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ raise_exception('no system turns') if m['role'] == 'system' }}"
        "<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    ruled = Row((Message("system", "Be brief."), Message("user", "Where?"), Message("assistant", "here")))

    failure = bench.preflight_failure(source, bench.dataset((ROWS[0], ruled, ROWS[1], ruled)))

    assert failure.reason == FailureReason.INVALID_DATA
    assert failure.exit_code == ExitCode.BAD_DATA
    assert "2 rows" in failure.message
    assert "train row 2, train row 4" in failure.message
    assert "no system turns" in failure.message


CALLING: Final = Row(
    (
        Message("user", "Where is bag 7?"),
        Message("assistant", "", tool_calls='[{"function":{"name":"find","arguments":{"bag":7}}}]'),
    ),
    tools='[{"type":"function","function":{"name":"find"}}]',
)


def test_a_call_that_the_chat_template_leaves_out_is_refused_with_its_row(bench: Workbench) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    template = source / "chat_template.jinja"
    template.write_text("{{ tools | tojson if tools }}" + template.read_text())

    failure = bench.preflight_failure(source, bench.dataset((ROWS[0], CALLING)))

    assert failure.reason == FailureReason.INVALID_DATA
    assert failure.message.startswith(
        "the base model's chat template rejects 1 row (train row 2): the model's chat template omits a call"
        " of find in messages[1]"
    )
    assert "use a base model whose chat template writes such calls" in failure.message


def test_a_supplied_chat_template_that_has_no_tools_is_named(bench: Workbench) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    (source / "chat_template.jinja").unlink()

    failure = bench.preflight_failure(source, bench.dataset((ROWS[0], CALLING)))

    assert failure.message.startswith(
        "the chat template plain, which a base model without one of its own gets,"
    )
    assert "(train row 2)" in failure.message


HEADED: Final = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}to user: {% endif %}"
    "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""The model has to write a header before each answer, which no reader of answers knows."""
SKIPPED: Final = HEADED.replace("to user: ", "{% if loop.length > 2 %}to user: {% endif %}")


def test_a_template_by_which_no_answer_comes_back_is_refused(bench: Workbench) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    (source / "chat_template.jinja").write_text(HEADED)

    failure = bench.preflight_failure(source, bench.dataset(ROWS, (), ROWS[:1]))

    assert failure.reason == FailureReason.BASE_MODEL_INVALID
    assert (
        "9 of 9 checked answers (train row 1, train row 2, train row 3, train row 4, train row 5 and 4 more)"
        " do not come back as they are in the rows: clients and metrics get 'to user: ' before the answer."
        in failure.message
    )
    assert "chat_template.jinja" in failure.message


def test_answers_that_do_not_come_back_are_named_in_a_warning_if_others_do(bench: Workbench) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    (source / "chat_template.jinja").write_text(SKIPPED)
    ruled = Row((Message("system", "Be brief."), *ROWS[0].messages))

    result = bench.preflight(source, bench.dataset((*ROWS[:3], ruled)))

    (warning,) = result.warnings
    assert warning.startswith(
        "1 of 4 checked answers (train row 4) do not come back as they are in the rows: clients and metrics"
        " get 'to user: ' before the answer. Metrics count such an answer as wrong"
    )


def test_a_rare_kind_of_row_is_checked_too(bench: Workbench) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    after_a_tool = HEADED.replace(
        "to user: ", "{% if messages[loop.index0 - 1]['role'] == 'tool' %}to user: {% endif %}"
    )
    (source / "chat_template.jinja").write_text(
        after_a_tool.replace(
            "{{ m['content'] }}", "{{ m['content'] }}{{ m['tool_calls'] | tojson if m['tool_calls'] }}"
        )
    )
    answered = Row((*CALLING.messages, Message("tool", "Here."), Message("assistant", "sales")))

    result = bench.preflight(source, bench.dataset((*ROWS, answered)))

    (warning,) = result.warnings
    assert warning.startswith(f"1 of 9 checked answers (train row {len(ROWS) + 1}) do not come back")


def test_answers_that_differ_in_case_only_are_a_warning(bench: Workbench) -> None:
    source = Path(shutil.copytree(tiny(), bench.root / "source"))
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))

    result = bench.preflight(source, bench.dataset((Row.pair("late?", "Sales"),)))

    (warning,) = result.warnings
    assert "1 of 1 checked answers (train row 1)" in warning
    assert "the tokenizer changes characters" in warning


def test_a_dataset_without_training_rows_is_rejected(bench: Workbench) -> None:
    failure = bench.preflight_failure(dataset=bench.dataset((), ROWS))

    assert failure.reason == FailureReason.NO_TRAINING_ROWS


def test_turns_that_are_not_learned_are_counted_in_a_warning_and_on_the_page(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny(), base)
    (base / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m['role'] }}>"
        "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    bench = Workbench(tmp_path)
    pair = Row.pair("order late?", "shipping").messages
    chat = Row((*pair, *pair))

    result = bench.preflight(base, bench.dataset((*ROWS, chat)))

    (warning,) = result.warnings
    assert warning.startswith(f"1 of {len(ROWS) + 2} assistant turns are context only and not learned")
    assert result.reasoning_parser == "qwen3"
    report = written(bench)
    assert (report["learnedTurns"], report["unlearnedTurns"]) == (len(ROWS) + 1, 1)
    page = (bench.store.run_folder(RUN, "preflight").path / "tokens.html").read_text()
    assert "assistant turns are context only" in page


def test_control_tokens_in_the_text_of_rows_are_named_with_their_rows(bench: Workbench) -> None:
    typed = Row.pair("what is </s> for?", "sales")

    result = bench.preflight(dataset=bench.dataset((*ROWS, typed), (), (typed,)))

    (warning,) = result.warnings
    assert warning.startswith("2 rows have a control token of the tokenizer in the text, such as </s>")
    assert f"(train row {len(ROWS) + 1}, test row 1)" in warning


def test_a_column_that_the_rows_do_not_keep_is_named_before_training(bench: Workbench) -> None:
    kept = [replace(row, columns=(("language", "en"),)) for row in ROWS[:2]]
    dataset = bench.dataset(ROWS, (), kept)

    assert bench.preflight(dataset=dataset, slice_by="language").train_rows == len(ROWS)
    with pytest.raises(StageFailure, match=r"sliceBy names product, .* add it to keepColumns") as caught:
        bench.preflight(dataset=dataset, slice_by="product")
    assert caught.value.reason == FailureReason.INVALID_CONFIG
