# SPDX-License-Identifier: Apache-2.0
"""python -m tools.docs.pictures [--check]

Draw docs/pictures/*.dot as SVG with Graphviz, or with --check list the drawings that are stale.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

PICTURES: Final = Path(__file__).resolve().parents[2] / "docs" / "pictures"
PROGRAM: Final = Path(sys.executable).parent / "graphviz-pure"


def draw(source: Path) -> str:
    """SVG of a picture in the DOT language."""
    drawn = subprocess.run([PROGRAM, "-Tsvg", source], capture_output=True, text=True, check=True).stdout
    return drawn.rstrip() + "\n"


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    for source in sorted(PICTURES.glob("*.dot")):
        picture, drawn = source.with_suffix(".svg"), draw(source)
        if picture.exists() and picture.read_text() == drawn:
            continue
        stale.append(picture)
        if not check:
            picture.write_text(drawn)
    for picture in stale:
        print(f"docs/pictures/{picture.name}: {'run `make pictures`' if check else 'drawn'}", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
