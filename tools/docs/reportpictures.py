# SPDX-License-Identifier: Apache-2.0
"""python -m tools.docs.reportpictures

Take the pictures of the evaluation page in docs/pictures with Chromium, at the width of a desktop and of a
phone. Its rows and numbers are made up. Without Chromium, the pictures stay as they are.
"""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from finetune_trainer.report.evaluation.content import evaluation_report
from finetune_trainer.report.html_page import evaluation_page
from tools.docs import chromium
from tools.docs.pictures import PICTURES
from tools.docs.samplereport import sample_facts

SIZES: Final[Mapping[str, tuple[int, int]]] = {"evaluation": (1280, 2000), "evaluation-phone": (390, 2000)}
"""Width and height of each picture in pixels."""


def take(page: Path, picture: Path, size: tuple[int, int]) -> None:
    """Take a picture of a page. Raises subprocess.CalledProcessError."""
    chromium.show(page, f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}")


def main() -> int:
    if not chromium.is_installed():
        print("docs/pictures/evaluation*.png stay as they are: there is no chromium", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "evaluation.html"
        page.write_text(evaluation_page(evaluation_report(sample_facts())))
        for name, size in SIZES.items():
            take(page, PICTURES / f"{name}.png", size)
            print(f"docs/pictures/{name}.png: drawn", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
