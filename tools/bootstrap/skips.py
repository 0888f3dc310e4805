# SPDX-License-Identifier: Apache-2.0
"""Checks that this machine cannot run: skipped by name, and failures in continuous integration.

The machine of a contributor may have neither root nor Go nor PyTorch. One that sets CI has all of them, so a
skip there is a check that was lost.
"""

import importlib.util
import os
import sys
from typing import Final

NO_TORCH: Final = "PyTorch is not installed: `make .venv` installs it"


def has_torch() -> bool:
    """Whether this environment has PyTorch, which `make venv-light` leaves out."""
    return importlib.util.find_spec("torch") is not None


def in_ci() -> bool:
    """Whether each skip is a failure: CI is set, and to another value than 0 or false."""
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


def skip(check: str, reason: str) -> int:
    """Print that `check` does not run and why; the exit status is 0, or 1 in CI."""
    strict = in_ci()
    print(f"{'not run, an error in CI' if strict else 'skipped'}: {check}: {reason}", file=sys.stderr)
    return int(strict)
