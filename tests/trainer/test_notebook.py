# SPDX-License-Identifier: Apache-2.0
"""The example notebook, executed with the tiny model in place of its base model."""

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from finetune_client import Client
from tests.docsblocks import ROOT
from tools.models.tiny import tiny

NOTEBOOKS = ROOT / "examples" / "notebooks"
ROWS = Path("examples", "ticket-routing", "data", "tickets.jsonl")
TAKEN_ROWS = 80
"""Rows of the notebook's file that the test uses."""
CELL_SECONDS = 1200
"""A bound for a machine that is busy with other tests; alone, the longest cell takes a minute."""


def output(cell: Any, kind: str = "text/plain") -> str:
    """The texts of a cell's outputs of this kind, and what it printed."""
    parts = (each.get("text") or each.get("data", {}).get(kind, "") for each in cell.outputs)
    return "\n".join(parts)


def test_the_notebook_trains_compares_and_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = tmp_path / "examples"
    shutil.copytree(NOTEBOOKS, examples / "notebooks")
    rows = (ROOT / ROWS).read_text().splitlines(keepends=True)[:TAKEN_ROWS]
    (tmp_path / ROWS).parent.mkdir(parents=True)
    (tmp_path / ROWS).write_text("".join(rows))
    folder = examples / "notebooks"
    shutil.copytree(tiny(), folder / ".finetune" / "claims" / "models" / "tiny")
    notebook = nbformat.read(NOTEBOOKS / "dataframe-to-endpoint.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    (variables,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    variables.source = 'BASE_MODEL = "pvc://models/tiny"'

    # Jupyter keeps its files below the home of the user.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    client = NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(folder)}})
    client.execute()

    by_source = {cell.source: cell for cell in notebook.cells}

    def cell(part: str) -> Any:
        (found,) = (each for source, each in by_source.items() if part in source)
        return found

    assert output(cell("run.wait()")).count("succeeded") == 2
    assert "<td>exact_match</td><td>Tuned</td>" in output(cell("runs[0]"), "text/html")
    compared = output(cell("client.compare"), "text/html")
    assert "spec.method.lora.r" in compared
    assert "routing-r16" in compared
    assert output(cell("openai.chat"))
    assert "routing-r4" in output(cell("pd.DataFrame(curves)"))
    runs = Client(local=folder / ".finetune").runs()
    assert {run.name for run in runs} == {"routing-r4", "routing-r16"}
    for run in runs:
        losses = [point.train for point in run.loss_curve()]
        assert losses[-1] < losses[0]
