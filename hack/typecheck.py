# SPDX-License-Identifier: Apache-2.0
"""Check the types with mypy, and without PyTorch those of the packages that do not need it.

python -m hack.typecheck
"""

import subprocess
import sys
from typing import Final

from tools.bootstrap.skips import NO_TORCH, has_torch, skip
from tools.bootstrap.uv import ROOT

WITHOUT_TORCH: Final = ("client/finetune_client", "operator/finetune_operator", "hack")


def main() -> int:
    command = (sys.executable, "-m", "mypy")
    if has_torch():
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    # Errors in imported modules are those of packages that are not installed.
    arguments = ("--follow-imports=silent", *WITHOUT_TORCH)
    code = subprocess.run((*command, *arguments), cwd=ROOT, check=False).returncode
    return skip("types of trainer_image, tools and tests", NO_TORCH) or code


if __name__ == "__main__":
    sys.exit(main())
