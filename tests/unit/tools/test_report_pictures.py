# SPDX-License-Identifier: Apache-2.0
"""The evaluation of the pictures in the documentation shows every part of the page."""

import re

from finetune_trainer.report.evaluation.content import evaluation_report
from finetune_trainer.report.html_page import evaluation_page
from tools.docs.pictures import PICTURES
from tools.docs.reportpictures import SIZES, sample_facts


def test_the_sample_has_every_part_of_the_page_and_is_the_same_each_time() -> None:
    page = evaluation_page(evaluation_report(sample_facts()))

    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings[:5] == ["Scores", "Gates", "By language", "Labels", "Answers"]
    assert page == evaluation_page(evaluation_report(sample_facts()))


def test_every_picture_of_a_page_is_in_the_documentation() -> None:
    pages = "".join(path.read_text() for path in PICTURES.parent.glob("*.md"))

    assert [name for name in SIZES if f"pictures/{name}.png" not in pages] == []
    assert all((PICTURES / f"{name}.png").exists() for name in SIZES)
