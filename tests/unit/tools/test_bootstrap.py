# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
