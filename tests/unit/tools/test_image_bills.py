# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tools.bootstrap.uv import ROOT
from tools.images import inventory
from tools.images.bill import bill_of_materials, pinned_hashes, size

IMAGE = "localhost/finetune-operator:0123456789ab"
STATUS = """\
Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2.15-2+b2
Description: GNU Bourne Again SHell
 more: of the description

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
"""


@pytest.fixture
def constraints(tmp_path: Path) -> Path:
    file = tmp_path / "constraints.txt"
    hashes = " \\\n    --hash=sha256:".join(["kopf==1.45.2", "a" * 64, "b" * 64])
    file.write_text(f"# pins\n{hashes}\nother==1 \\\n    --hash=sha256:{'c' * 64}\n")
    return file


def found() -> dict[str, Any]:
    """The inventory of an image."""
    return {
        "bytes": 1000,
        "distribution": "debian-12",
        "interpreter": "3.11.2",
        "python": [
            {"name": "Kopf", "version": "1.45.2", "license": "MIT"},
            {"name": "odd", "version": "2", "license": "Apache Software License"},
            {"name": "silent", "version": "3", "license": ""},
            {"name": "two", "version": "4", "license": "Apache-2.0 OR BSD-2-Clause"},
        ],
        "debian": [{"name": "bash", "version": "5.2.15-2+b2", "architecture": "amd64"}],
    }


def components(document: str) -> dict[str, Any]:
    return {each["name"]: each for each in json.loads(document)["components"]}


def test_a_bill_is_valid_cyclonedx_and_names_image_and_base(constraints: Path) -> None:
    document = bill_of_materials(IMAGE, "python:3.11@sha256:aa", found(), constraints)

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None
    metadata = json.loads(document)["metadata"]
    assert metadata["component"]["version"] == "0123456789ab"
    assert {"name": "finetune.dev:base-image", "value": "python:3.11@sha256:aa"} in metadata["properties"]


def test_a_bill_lists_packages_with_versions_licenses_and_the_hashes_of_what_was_installed(
    constraints: Path,
) -> None:
    listed = components(bill_of_materials(IMAGE, "base", found(), constraints))

    assert listed["Kopf"]["purl"] == "pkg:pypi/kopf@1.45.2"
    assert listed["Kopf"]["licenses"] == [{"license": {"id": "MIT"}}]
    hashes = listed["Kopf"]["externalReferences"][0]["hashes"]
    assert {each["content"] for each in hashes} == {"a" * 64, "b" * 64}
    assert listed["odd"]["licenses"] == [{"license": {"name": "Apache Software License"}}]
    assert listed["two"]["licenses"] == [{"expression": "Apache-2.0 OR BSD-2-Clause"}]
    assert "licenses" not in listed["silent"]
    assert listed["bash"]["purl"] == "pkg:deb/debian/bash@5.2.15-2%2Bb2?arch=amd64&distro=debian-12"
    assert listed["python"]["version"] == "3.11.2"


def test_a_bill_has_the_size_of_its_image_and_of_no_other(constraints: Path, tmp_path: Path) -> None:
    bill = tmp_path / "bill.json"
    assert size(bill, IMAGE) is None

    bill.write_text(bill_of_materials(IMAGE, "base", found(), constraints))

    assert size(bill, IMAGE) == 1000
    assert size(bill, "localhost/finetune-operator:ba9876543210") is None


@pytest.mark.parametrize("name", ["operator", "trainer"])
def test_every_pinned_package_has_its_hashes(name: str) -> None:
    constraints = ROOT / "constraints" / f"{name}.txt"
    pins = [line for line in constraints.read_text().splitlines() if "==" in line]
    hashes = pinned_hashes(constraints)
    assert len(hashes) == len(pins)
    assert all(hashes.values())


def test_packages_of_debian_that_were_removed_are_not_listed(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS)
    bash = {"name": "bash", "version": "5.2.15-2+b2", "architecture": "amd64"}
    assert list(inventory.debian_packages(status)) == [bash]


def test_the_inventory_needs_nothing_but_the_interpreter_that_runs_it() -> None:
    source = Path(inventory.__file__).read_text().partition('if __name__ == "__main__"')[0]
    script = f"{source}\nprint(json.dumps(list(python_packages())))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    packages = {each["name"]: each for each in json.loads(output)}
    assert packages["kopf"]["version"] == version("kopf")
    assert packages["pydantic"]["license"] == "MIT"


def test_the_size_counts_a_file_with_two_names_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 1000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "same").hardlink_to(tmp_path / "one")
    assert inventory.total_bytes(str(tmp_path)) == 1000
