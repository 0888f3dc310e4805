# SPDX-License-Identifier: Apache-2.0
"""A new format, which is one class and one row of the registry, is detected, read and shown."""

from pathlib import Path
from typing import ClassVar, cast

import pytest

from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.containers.base import Fields
from finetune_trainer.data.formats.base import Format, FormatHints, Issues, Match, text
from finetune_trainer.data.formats.registry import FORMATS
from finetune_trainer.data.recipe import Recipe
from finetune_trainer.data.row_problems import Issue
from finetune_trainer.rows import Row
from tests.trainer.data.reading import json_lines, read

NAME = cast(DataFormat, "Interview")
QUESTION = {"question": "Where is my parcel?", "reply": "shipping"}
ALPACA = {"instruction": "a", "output": "b"}


class Interview(Format):
    """`question` and `reply`."""

    name: ClassVar = NAME
    title: ClassVar = "interviews"

    @classmethod
    def match(cls, record: Fields, _: FormatHints, /) -> Match | None:
        return Match.SHAPE if record.keys() >= {"question", "reply"} else None

    def columns(self) -> tuple[str, ...]:
        return ("question", "reply")

    def row(self, record: Fields) -> Row | Issues:
        found: list[Issue] = []
        prompt, completion = (text(record, name, found) for name in self.columns())
        return tuple(found) or Row.pair(prompt, completion)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cast(dict[DataFormat, type[Format]], FORMATS), NAME, Interview)


def test_it_is_detected_by_its_fields(tmp_path: Path) -> None:
    outcome = read(tmp_path, json_lines([QUESTION]))

    assert (outcome.format, outcome.rows, outcome.unused) == (
        NAME,
        [Row.pair("Where is my parcel?", "shipping")],
        (),
    )


def test_the_stronger_match_wins_at_any_position_in_the_registry(tmp_path: Path) -> None:
    assert read(tmp_path, json_lines([QUESTION | ALPACA])).format == NAME
    assert read(tmp_path, json_lines([ALPACA])).format == "Alpaca"


def test_it_can_be_forced_and_then_reports_missing_fields(tmp_path: Path) -> None:
    outcome = read(tmp_path, json_lines([ALPACA]), Recipe(format=NAME))

    assert outcome.problems[0].startswith('row 1: "question" is missing')


def test_between_equal_matches_the_first_in_the_registry_wins(tmp_path: Path) -> None:
    both = {"conversations": [], "chosen": "b", "rejected": "c"}

    assert read(tmp_path, json_lines([both])).format == "ShareGPT"
