"""python -m tools.docs.reportpictures

Take the pictures of the evaluation page in docs/pictures with Chromium, at the width of a desktop and of a
phone. Its rows and numbers are made up. Without Chromium, the pictures stay as they are.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from finetune_trainer.report.evaluation.content import evaluation_report
from finetune_trainer.report.htmlpage import evaluation_page
from tools.docs.pictures import PICTURES
from tools.docs.samplereport import sample_facts

SIZES: Final[Mapping[str, tuple[int, int]]] = {"evaluation": (1280, 2000), "evaluation-phone": (390, 2000)}
"""Width and height of each picture in pixels."""
OPTIONS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=2000",
)  # fmt: skip


def take(program: str, page: Path, picture: Path, size: tuple[int, int]) -> None:
    """Take a picture of a page. Raises subprocess.CalledProcessError."""
    with tempfile.TemporaryDirectory() as profile:
        command = [
            program,
            *OPTIONS,
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            f"--screenshot={picture}",
            page.as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True)


def main() -> int:
    program = shutil.which("chromium")
    if program is None:
        print("docs/pictures/evaluation*.png stay as they are: there is no chromium", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "evaluation.html"
        page.write_text(evaluation_page(evaluation_report(sample_facts())))
        for name, size in SIZES.items():
            take(program, page, PICTURES / f"{name}.png", size)
            print(f"docs/pictures/{name}.png: drawn", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
