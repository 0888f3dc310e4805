# SPDX-License-Identifier: Apache-2.0
"""Commands in the documentation: run those that need no cluster, and check the markers of all others.

The line above a block is a comment: `run`, `run by TEST`, `output`, or `not run: REASON`.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from finetune_operator.api.crd import KINDS
from tests.docsblocks import ROOT, blocks

MARKER: Final = re.compile(r"run|output|not run: \S.*|run by (?P<test>\S+)")
TYPED: Final = re.compile(
    r"kubectl (?:-n \S+ )?(?:get|describe|patch|delete|annotate(?: --overwrite)?|scale) ([a-z][a-z,]*)\b"
)
OF_KUBERNETES: Final = {
    *("pod", "pods", "pvc", "job", "node", "nodes", "lease", "service", "endpointslice", "endpointslices"),
    *("crd", "secret", "deployment", "events", "resourcequota", "httproute"),
}


def test_every_block_of_commands_is_run_or_says_why_not() -> None:
    for block in blocks():
        where = f"{block.page.relative_to(ROOT)}: {block.text.splitlines()[0]}"
        marker = MARKER.fullmatch(block.marker or "")
        assert marker, where
        if marker["test"]:
            assert block.page.name in (ROOT / marker["test"]).read_text(), where


def test_kubectl_is_asked_for_types_that_exist() -> None:
    """`kubectl get ds` would list DaemonSets."""
    ours = {name for kind in KINDS for name in (kind.plural, kind.name.lower(), kind.short_name)}
    for block in blocks():
        for types in TYPED.findall(block.text):
            assert set(types.split(",")) <= ours | OF_KUBERNETES | {"finetune"}, block.text


@pytest.mark.parametrize("page", sorted({block.page.name for block in blocks() if block.marker == "run"}))
def test_the_commands_for_a_laptop_do_what_their_page_says(page: str, tmp_path: Path) -> None:
    rows = [
        {"subject": f"Order {n}", "body": f"Where is it? {n}", "label": f"team-{n % 7}"} for n in range(250)
    ]
    lines = [
        "text,label,subject,body",
        *(f"{r['body']},{r['label']},{r['subject']},{r['body']}" for r in rows),
    ]
    (tmp_path / "tickets.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"prompt": row["body"], "completion": row["label"]}) + "\n" for row in rows)
    )
    (tmp_path / "exports").mkdir()
    with gzip.open(tmp_path / "exports" / "may.csv.gz", "wt") as file:
        file.write("subject,body,label\n" + "".join(f"{','.join(row.values())}\n" for row in rows))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    commands = [
        line
        for block in blocks()
        if block.marker == "run" and block.page.name == page
        for line in block.text.splitlines()
        if not line.startswith("pip install")
    ]
    # jq reads the report that the other commands write, so it runs last.
    for command in sorted(commands, key=lambda line: line.startswith("jq")):
        if command.startswith("jq") and shutil.which("jq") is None:
            pytest.skip(f"jq is not installed: of {page}, only `{command}` was not run")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 1), command + done.stdout + done.stderr
    assert (tmp_path / "report.html").exists()
