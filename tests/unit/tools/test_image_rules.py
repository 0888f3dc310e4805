# SPDX-License-Identifier: Apache-2.0
"""Rules for the images: a base image that can be pinned, a user other than root, a size budget."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bootstrap.skips import NO_TORCH, has_torch
from tools.bootstrap.uv import ROOT
from tools.images.base import DEFAULT, PINNED, require_pinned
from tools.images.bill import BUDGETS, check_budget
from tools.images.buildah import ImageError

needs_torch = pytest.mark.skipif(not has_torch(), reason=NO_TORCH)
DIGEST = "sha256:" + "0a" * 32
DOCKERFILES = [ROOT / "operator" / "Dockerfile", ROOT / "trainer_image" / "Dockerfile"]


def test_both_images_have_the_same_base() -> None:
    assert len({DEFAULT.findall(file.read_text())[0] for file in DOCKERFILES}) == 1


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_an_image_runs_as_a_user_that_kubernetes_can_tell_from_root(file: Path) -> None:
    users = re.findall(r"^USER (.*)$", file.read_text(), re.MULTILINE)
    assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", users[-1])


@pytest.mark.parametrize("image", ["python:3.11-slim-bookworm", "localhost/base:1", f"python@{DIGEST[:-1]}"])
def test_a_release_refuses_a_base_image_that_may_be_another_one_tomorrow(image: str) -> None:
    with pytest.raises(ImageError, match="base image with a digest"):
        require_pinned(image)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (f"python:3.11-slim-bookworm@{DIGEST}", "python"),
        (f"python@{DIGEST}", "python"),
        (f"registry.example:5000/team/python:3.11@{DIGEST}", "registry.example:5000/team/python"),
        (f"registry.example:5000/team/python@{DIGEST}", "registry.example:5000/team/python"),
    ],
)
def test_a_base_image_may_be_named_by_its_digest(image: str, name: str) -> None:
    require_pinned(image)
    pinned = PINNED.fullmatch(image)
    assert pinned is not None
    assert (pinned["name"], pinned["digest"]) == (name, DIGEST)


def test_an_image_within_its_budget_says_how_much_of_it_is_used() -> None:
    assert check_budget("finetune-operator", 100 << 20).startswith("finetune-operator: 100 MiB of ")


@pytest.mark.parametrize("image", BUDGETS)
def test_an_image_beyond_its_budget_is_an_error_that_says_what_to_do(image: str) -> None:
    with pytest.raises(ImageError, match="or raise its budget in"):
        check_budget(image, BUDGETS[image] + 1)


COMPILER_CHECK = ROOT / "trainer_image" / "compiler_check.py"


def test_the_cuda_image_compiles_triton_s_driver_as_it_is_built() -> None:
    """In the stage that the packages of the CPU variant replace."""
    stages = dict(
        re.findall(
            r"^FROM [^\n]* AS (\w+)\n(.*?)(?=^FROM|\Z)", DOCKERFILES[1].read_text(), re.MULTILINE | re.DOTALL
        )
    )

    assert re.search(r"apt-get install .*\bgcc libc6-dev\b", stages["dependencies"])
    assert re.search(r"^RUN python3 \S*compiler_check\.py", stages["dependencies"], re.MULTILINE)
    assert "gcc" not in stages["python"]


@needs_torch
def test_an_image_without_a_compiler_is_not_built() -> None:
    checked = subprocess.run(
        [sys.executable, COMPILER_CHECK],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode != 0
    assert "Failed to find C compiler" in checked.stderr


@needs_torch
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler here")
def test_with_a_compiler_triton_s_driver_is_built() -> None:
    subprocess.run([sys.executable, COMPILER_CHECK], check=True)
