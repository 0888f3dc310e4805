# SPDX-License-Identifier: Apache-2.0
"""The steps for a GPU run here on a CPU, so that they work on the first machine that has one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.steps import STEPS
from tools.bootstrap.uv import ROOT


@pytest.mark.full
def test_every_step_runs_with_a_tiny_model(tmp_path: Path) -> None:
    search = os.pathsep.join((str(ROOT / "trainer_image"), str(ROOT)))
    subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--rehearse", "--folder", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": search},
        check=True,
    )

    outcomes = {name: json.loads((tmp_path / f"{name}.json").read_text())["outcome"] for name in STEPS}
    assert {name for name, outcome in outcomes.items() if outcome != "passed"} == {"kernels"}
