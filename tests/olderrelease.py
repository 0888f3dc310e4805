"""The release before this one, from the repository's own history."""

import subprocess
from pathlib import Path
from typing import Final

import pytest

COMMIT: Final = "ec8a5a2"
ROOT: Final = Path(__file__).parents[1]


def older_release(folder: Path) -> Path:
    """Its packages in `folder`: `operator` and `trainer_image`. Skips where the history does not have it."""
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run([*git, "cat-file", "-e", f"{COMMIT}^{{commit}}"], capture_output=True, check=False)
    if known.returncode != 0:
        pytest.skip(f"commit {COMMIT} is not in the history of this clone")
    archive = subprocess.run(
        [*git, "archive", COMMIT, "operator", "trainer_image"], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def python_path(release: Path) -> str:
    """With it Python imports the release's packages, and not those of this one."""
    return f"{release / 'operator'}:{release / 'trainer_image'}"
