# SPDX-License-Identifier: Apache-2.0
"""The worked change of docs/extending.md applies to the present sources, and its metric works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.bootstrap.uv import ROOT


def test_the_worked_change_applies_and_its_metric_rates_answers(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    (change,) = re.findall(r"^```diff\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for name in re.findall(r"^--- a/(.*)$", change, re.MULTILINE):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    applied = subprocess.run(
        ["git", "apply", "-"], cwd=tmp_path, input=change, capture_output=True, text=True, check=False
    )

    assert applied.returncode == 0, applied.stderr
    shutil.copytree(ROOT / "trainer_image", tmp_path / "whole")
    shutil.copytree(tmp_path / "trainer_image", tmp_path / "whole", dirs_exist_ok=True)
    code = (
        "from finetune_trainer.contract.metrics import METRICS\n"
        "from finetune_trainer.scoring.textmetrics.table import TEXT_METRICS\n"
        "assert {name for name, row in METRICS.items() if row.in_rollouts} == {*TEXT_METRICS}\n"
        "print(*(TEXT_METRICS['number_match'](text, {'1,200.50'}) for text in ('1200.5', '12', 'twelve')))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "whole")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["1.0", "0.0", "0.0"], done.stderr
