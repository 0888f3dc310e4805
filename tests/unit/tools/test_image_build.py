# SPDX-License-Identifier: Apache-2.0
"""`make images` with a buildah that builds nothing."""

import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from typer.testing import CliRunner

from tools.images import bill
from tools.images import build as building
from tools.images.__main__ import app
from tools.images.buildah import ImageError
from tools.images.cpu_packages import Dependencies
from tools.images.tags import Variant

BASE = f"python:3.11@sha256:{'0a' * 32}"
MEBIBYTE = 1 << 20
INVENTORY = {
    "bytes": 100 * MEBIBYTE,
    "distribution": "debian-12",
    "interpreter": "3.11.2",
    "python": [{"name": "kopf", "version": "1.45.2", "license": "MIT"}],
    "debian": [],
}


class Store:
    """A buildah store that has every image, and counts the inventories by image."""

    def __init__(self) -> None:
        self.looked_into: Counter[str] = Counter()

    def has(self, _image: str) -> bool:
        return True

    def run(self, *_arguments: str) -> str:
        """The id of the pulled image."""
        return "0123456789ab"

    def output(self, image: str, *_command: str, **_: Any) -> str:
        self.looked_into[image] += 1
        return json.dumps(INVENTORY)


class Nobody:
    """A node that has every image."""

    def has(self, _image: str) -> bool:
        return True


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store of the build, whose files go to the test's folder."""
    store = Store()
    packages = Dependencies(tmp_path / "packages", PurePosixPath("/opt/venv"))
    monkeypatch.setenv("BASE_IMAGE", BASE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("IMAGE_REGISTRY", "KUBE_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(building, "BILLS", tmp_path / "sbom")
    monkeypatch.setattr(building, "Buildah", lambda: store)
    monkeypatch.setattr(building, "Node", Nobody)
    monkeypatch.setattr(building, "cpu_dependencies", lambda *_: packages)
    return store


@pytest.mark.parametrize("variant", Variant)
def test_the_build_writes_a_bill_of_each_image(store: Store, tmp_path: Path, variant: Variant) -> None:
    names = building.build(variant).names

    for title, image in (("operator", names.operator), (f"trainer-{variant}", names.trainer)):
        written = json.loads((tmp_path / "sbom" / f"finetune-{title}.cdx.json").read_text())
        assert written["metadata"]["component"]["bom-ref"] == image
        assert {"kopf", "python"} == {each["name"] for each in written["components"]}


def test_the_size_of_images_that_are_there_already_is_told_again(store: Store) -> None:
    for _ in range(2):
        done = CliRunner().invoke(app, ["build"])
        assert done.exit_code == 0
        assert "finetune-operator: 100 MiB of 360 MiB\nfinetune-trainer-cpu: 100 MiB of " in done.stderr
        assert json.loads(done.stdout).keys() == {"operator", "trainer"}
    assert set(store.looked_into.values()) == {1}


def test_a_budget_that_was_lowered_is_checked_against_images_that_are_there_already(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    building.build(Variant.CPU)
    monkeypatch.setitem(bill.BUDGETS, "finetune-trainer-cpu", 99 * MEBIBYTE)

    with pytest.raises(ImageError, match="finetune-trainer-cpu: 100 MiB of 99 MiB: the image is too large"):
        building.build(Variant.CPU)


def test_an_image_of_other_sources_gets_another_bill(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    building.build(Variant.CPU)
    monkeypatch.setenv("BASE_IMAGE", BASE.replace("0a", "0b"))

    names = building.build(Variant.CPU).names

    assert store.looked_into[names.operator] == 1
    assert len(store.looked_into) == 4
