# SPDX-License-Identifier: Apache-2.0
"""The release that upgrade tests start from is named in one file."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.baserelease import FILE, OPERATOR_PINS, PRESENT, BaseRelease, named_commit


def test_the_file_names_a_whole_commit_or_the_present_tree() -> None:
    assert re.fullmatch(rf"[0-9a-f]{{40}}|{PRESENT}", named_commit(FILE.read_text()))


@pytest.mark.parametrize("text", ["# nothing\n", "present\nabc\n"])
def test_a_file_that_names_none_or_two_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="values to unpack"):
        named_commit(text)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseRelease:
    return BaseRelease(tmp_path_factory.mktemp("base"))


def test_the_tree_has_charts_and_packages_of_its_own(base: BaseRelease) -> None:
    assert (base.chart("finetune-operator") / "Chart.yaml").exists()
    assert base.contract >= 1


def test_equal_pins_need_no_packages_of_their_own(tmp_path: Path) -> None:
    assert BaseRelease(tmp_path, PRESENT).python == Path(sys.executable)


def test_packages_that_were_added_since_are_no_reason_to_install(tmp_path: Path) -> None:
    """An installation needs the network, and a second copy of everything that the trainer needs."""
    base = BaseRelease(tmp_path, PRESENT)
    file = base.folder / OPERATOR_PINS
    pins = file.read_text()
    file.write_text("\n".join(line for line in pins.splitlines() if not line.startswith("kopf==")))
    assert file.read_text() != pins
    assert base.python == Path(sys.executable)


@pytest.mark.parametrize("pin", ["kopf==0.0.1", "no-longer-used==1.0"])
def test_a_package_that_is_pinned_differently_is_a_reason_to_install(tmp_path: Path, pin: str) -> None:
    base = BaseRelease(tmp_path, PRESENT)
    file = base.folder / OPERATOR_PINS
    file.write_text(f"{file.read_text()}{pin} \\\n    --hash=sha256:{'0' * 64}\n")
    assert not base.has_present_pins(OPERATOR_PINS)


def test_definitions_can_be_made_older(base: BaseRelease) -> None:
    base.remove_field("finetunejobs", "status", "live")

    file = base.chart("finetune-operator-crds") / "definitions" / "finetunejobs.yaml"
    schema = yaml.safe_load(file.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    status = schema["properties"]["status"]["properties"]
    assert "live" not in status
    assert "evaluation" in status
