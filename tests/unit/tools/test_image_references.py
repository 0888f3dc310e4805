# SPDX-License-Identifier: Apache-2.0
import compileall

import pytest

from tools.bootstrap.uv import ROOT
from tools.images.tags import OPERATOR_FILES, TRAINER_FILES, Variant, content_key, image_references


def test_every_file_that_decides_a_tag_exists() -> None:
    assert [name for name in OPERATOR_FILES + TRAINER_FILES if not (ROOT / name).exists()] == []


def test_a_tag_changes_with_the_files_and_with_the_base_image() -> None:
    keys = {
        content_key(OPERATOR_FILES, "base:1"),
        content_key(OPERATOR_FILES, "base:2"),
        content_key(OPERATOR_FILES[1:], "base:1"),
    }

    assert len(keys) == 3


def test_what_python_caches_does_not_change_a_tag() -> None:
    before = content_key(TRAINER_FILES)

    compileall.compile_dir(ROOT / "trainer_image" / "finetune_trainer", quiet=1, force=True, optimize=1)

    assert content_key(TRAINER_FILES) == before


def test_images_are_named_for_the_registry_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_REGISTRY", "registry.example/team/")

    names = image_references("base:1", Variant.CUDA)

    assert names.operator.startswith("registry.example/team/finetune-operator:")
    assert names.trainer.startswith("registry.example/team/finetune-trainer:")
    assert names.trainer.endswith("-cuda")


def test_without_a_registry_images_are_named_so_that_no_one_pulls_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("IMAGE_REGISTRY", raising=False)

    names = image_references("base:1", Variant.CPU)

    assert names.operator.startswith("localhost/finetune-operator:")
    assert names.trainer.endswith("-cpu")
