# SPDX-License-Identifier: Apache-2.0
"""Preflight refuses metrics that the options or the rows cannot serve, before training takes time."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_trainer.contract.evaluation import MetricOptions
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.rows import Message, Row
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.scoring.metric_scope import MetricScope, ScopeSource
from finetune_trainer.tokens.chat_template import load_tokenizer
from tests.trainer.workbench import ROWS, Workbench
from tools.models import tiny


@pytest.mark.parametrize(
    ("metric", "options", "words"),
    [
        ("regex_match", {}, "evaluation.options.pattern: regex_match needs a pattern"),
        ("accuracy", {"labels": ("billing",)}, "evaluation.options.labels: the answer "),
        ("json_fields", {}, "evaluation.metrics: json_fields needs an answer in JSON, but no test row"),
        ("tool_call_match", {}, "evaluation.metrics: tool_call_match needs an answer that calls a tool"),
        ("json_valid", {"json_schema": '{"type": 1}'}, "evaluation.options.jsonSchema: $.type: 1 is not"),
    ],
)
def test_a_metric_without_what_it_needs_is_refused_early(
    tmp_path: Path, metric: str, options: dict[str, Any], words: str
) -> None:
    bench = Workbench(tmp_path)

    failure = bench.preflight_failure(
        dataset=bench.dataset(ROWS, (), ROWS[:4]), metrics=(metric,), options=MetricOptions(**options)
    )

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert failure.message.startswith(words)


def test_metrics_with_what_they_need_are_accepted(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    rows = (Row.pair("order late?", '{"team": "billing"}'), *ROWS[:4])

    bench.preflight(
        dataset=bench.dataset(ROWS, (), rows),
        metrics=("json_fields", "json_valid", "regex_match"),
        options=MetricOptions(pattern=".*", json_schema="{}"),
    )
    bench.preflight(dataset=bench.dataset(ROWS, (), ROWS[:4]), metrics=("accuracy", "macro_f1"))


def test_the_checks_do_not_change_the_work_of_the_stage(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    config = bench.preflight_config(tmp_path, bench.dataset())

    assert config.model_copy(update={"metrics": ("accuracy",)}).digest == config.digest


CALL: Final = json.dumps([{"type": "function", "function": {"name": "route", "arguments": {"to": "sales"}}}])
TURN: Final = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}CALLS</s>{% endfor %}"
PROMPT: Final = "{% if add_generation_prompt %}<assistant>{% endif %}"
AS_JSON: Final = (
    "{% for c in m['tool_calls'] or [] %}<tool_call>{{ c['function'] | tojson }}</tool_call>{% endfor %}"
)
AS_PYTHON: Final = "{% for c in m['tool_calls'] or [] %}[{{ c['function']['name'] }}(to='sales')]{% endfor %}"


@pytest.mark.parametrize(("calls", "is_read"), [(AS_JSON, True), (AS_PYTHON, False)])
def test_calls_must_be_readable_in_the_form_of_the_template(
    tmp_path: Path, calls: str, is_read: bool
) -> None:
    bench = Workbench(tmp_path)
    row = Row((*ROWS[0].input, Message("assistant", "", tool_calls=CALL)))
    dataset = bench.store.artifact(ArtifactRef(kind="datasets", digest=bench.dataset((), (), (row, ROWS[1]))))
    tokenizer = load_tokenizer(tiny())
    tokenizer.chat_template = TURN.replace("CALLS", calls) + PROMPT
    source = ScopeSource(dataset, "test", tokenizer, {})

    if is_read:
        assert source.find(("tool_call_match",), MetricOptions()) == MetricScope()
    else:
        with pytest.raises(StageFailure, match="tool_call_match cannot read the calls of test row 1"):
            source.find(("tool_call_match",), MetricOptions())
