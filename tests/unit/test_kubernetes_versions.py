# SPDX-License-Identifier: Apache-2.0
"""The versions of Kubernetes in the documentation are those that the charts accept and the tests have."""

import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from tools.cluster.toolchain import KUBERNETES
from tools.peers import old_kubernetes
from tools.peers.toolchain import OLDER_KUBERNETES

ROOT: Final = Path(__file__).parents[2]
SCHEMAS: Final = list(old_kubernetes.pins())
OLDEST: Final = SCHEMAS[0]


def minor(version: str) -> str:
    """1.37 of v1.37.2."""
    return version.removeprefix("v").rpartition(".")[0]


def number(version: str) -> int:
    return int(version.partition(".")[2])


def test_the_table_says_how_each_version_is_tested() -> None:
    page = (ROOT / "docs" / "versions.md").read_text()
    rows = re.findall(r"^\| (1\.\d+(?: to 1\.\d+)?) \|", page, re.MULTILINE)
    assert rows == [minor(KUBERNETES.version), *OLDER_KUBERNETES, f"{OLDEST} to {SCHEMAS[-1]}"]


@pytest.mark.parametrize("version", OLDER_KUBERNETES)
def test_the_row_of_an_older_server_refers_to_the_results_of_its_suite(version: str) -> None:
    (row,) = re.findall(rf"^\| {version} \| (.*)$", (ROOT / "docs" / "versions.md").read_text(), re.MULTILINE)
    assert f"suite `kubernetes-{version}`" in row
    assert "(testing.md#peers)" in row
    assert f"\n| kubernetes-{version}: " in (ROOT / "docs" / "testing.md").read_text()


def test_every_version_below_the_newest_has_a_schema() -> None:
    newest = number(minor(KUBERNETES.version))
    assert [number(version) for version in SCHEMAS] == list(range(number(OLDEST), newest))
    assert (
        {minor(tool.version) for tool in OLDER_KUBERNETES.values()} == set(OLDER_KUBERNETES) <= set(SCHEMAS)
    )


@pytest.mark.parametrize("chart", ["finetune-operator", "finetune-operator-crds"])
def test_the_charts_install_on_the_versions_that_have_a_schema(chart: str) -> None:
    described = yaml.safe_load((ROOT / "charts" / chart / "Chart.yaml").read_text())
    assert described["kubeVersion"] == f">={OLDEST}.0-0"


@pytest.mark.parametrize("page", ["docs/quickstart.md", "charts/finetune-operator/README.md"])
def test_pages_name_the_oldest_version(page: str) -> None:
    assert f"Kubernetes {OLDEST} or newer" in (ROOT / page).read_text()
