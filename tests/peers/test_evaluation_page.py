# SPDX-License-Identifier: Apache-2.0
"""The script of the evaluation page in a browser: search, filters, and that no other script runs."""

import json
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_trainer.report.evaluation.content import evaluation_report
from finetune_trainer.report.html_page import OPEN_ROWS, evaluation_page
from tools.docs import chromium
from tools.docs.reportpictures import sample_facts

pytestmark = pytest.mark.skipif(not chromium.is_installed(), reason="make test-peers installs Chromium")

DRIVER: Final = """\
<!DOCTYPE html>
<iframe srcdoc="{page}"></iframe>
<pre></pre>
<script>
const frame = document.querySelector('iframe');
let loads = 0;
frame.onload = () => {{
  loads += 1;
  if (loads > 1) return;
  const page = frame.contentDocument;
  const form = page.querySelector('#answers form');
  const states = {steps}.map((step) => {{
    if (step) {{
      form.querySelector('input[type=search]').value = step.search;
      form.querySelector(`input[name=outcome][value="${{step.outcome}}"]`).checked = true;
      form.dispatchEvent(new Event('input'));
    }}
    const rows = [...page.querySelectorAll('#answers .row')].filter((row) => !row.hidden);
    return {{
      rows: rows.map((row) => parseInt(row.querySelector('h3').textContent.replace('Row ', ''))),
      status: form.querySelector('[role=status]').textContent,
      open: page.querySelector('details.more-rows').open,
    }};
  }});
  form.requestSubmit();
  const script = page.createElement('script');
  script.textContent = 'window.injected = true';
  page.body.append(script);
  const result = {{
    states,
    formIsVisible: !form.hidden,
    injected: frame.contentWindow.injected === true,
  }};
  setTimeout(() => {{
    document.querySelector('pre').textContent = JSON.stringify({{...result, loads}});
  }}, 500);
}};
</script>
"""
"""A page that shows the evaluation page in a frame of its own origin, and uses its form as a reader does."""

REPORT: Final = evaluation_report(sample_facts())
ALL: Final = [row["row"] for row in REPORT["answers"]]


@dataclass(frozen=True)
class Step:
    """What the reader sets in the form."""

    search: str = ""
    outcome: str = ""

    @property
    def rows(self) -> list[int]:
        """The rows that it selects, by the report."""
        return [
            row["row"]
            for row in REPORT["answers"]
            if (not self.outcome or self.outcome in row["outcomes"])
            and all(word.lower() in json.dumps(row).lower() for word in self.search.split())
        ]


STEPS: Final = (
    Step(search="BLUETOOTH code"),
    Step(outcome="wrong"),
    Step(search="bluetooth", outcome="wrong"),
    Step(search="no row has this"),
    Step(),
)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page showed at first and after each step."""
    driver: Path = tmp_path_factory.mktemp("page") / "driver.html"
    steps = json.dumps([None, *({"search": step.search, "outcome": step.outcome} for step in STEPS)])
    driver.write_text(DRIVER.format(page=escape(evaluation_page(REPORT)), steps=steps))
    printed = chromium.show(driver, "--dump-dom")
    found: dict[str, Any] = json.loads(unescape(printed.partition("<pre>")[2].partition("</pre>")[0]))
    return found


def test_at_first_all_rows_are_listed_and_the_best_are_folded(shown: dict[str, Any]) -> None:
    assert len(ALL) > OPEN_ROWS
    assert shown["formIsVisible"]
    assert shown["states"][0] == {"rows": ALL, "status": "", "open": False}


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_search_and_filter_show_the_rows_that_match_both(shown: dict[str, Any], number: int) -> None:
    step = STEPS[number]
    status = "" if step == Step() else f"{len(step.rows)} of {len(ALL)} listed rows"
    assert shown["states"][number + 1] == {"rows": step.rows, "status": status, "open": True}


def test_steps_select_different_rows() -> None:
    counts = [len(step.rows) for step in STEPS]
    assert counts[3] == 0 < counts[2] < min(counts[:2])
    assert max(counts[:2]) < counts[4] == len(ALL)


def test_the_policy_of_the_page_allows_no_other_script(shown: dict[str, Any]) -> None:
    assert not shown["injected"]


def test_enter_in_the_search_does_not_load_the_page_again(shown: dict[str, Any]) -> None:
    assert shown["loads"] == 1
