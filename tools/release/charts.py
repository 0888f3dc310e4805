# SPDX-License-Identifier: Apache-2.0
"""The charts, packaged with the names of the released images."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import yaml

from tools.bootstrap.uv import ROOT
from tools.images.buildah import ImageError
from tools.release.registry import run

CHARTS: Final = ROOT / "charts"
IMAGES: Final = ("image", "trainerImage")
"""Values with the parts of an image's name."""
EMPTY: Final = re.compile(r'^  registry: ""$', re.MULTILINE)


def chart_names() -> list[str]:
    """Names of all charts."""
    return sorted(path.parent.name for path in CHARTS.glob("*/Chart.yaml"))


def package_charts(prefix: str, target: Path) -> Iterator[Path]:
    """Write each chart as an archive into the folder `target`, with images of the registry `prefix`.

    Raises:
        ImageError: the values name images in another form, or Helm failed.
    """
    for name in chart_names():
        with TemporaryDirectory() as folder:
            chart = Path(folder) / name
            shutil.copytree(CHARTS / name, chart)
            values = chart / "values.yaml"
            if values.exists():
                values.write_text(with_registry(values.read_text(), prefix))
            yield Path(run("helm", "package", chart, "--destination", target).rpartition(": ")[2])


def with_registry(values: str, prefix: str) -> str:
    """Values of a chart whose images are in the registry `prefix`; comments stay as they are."""
    before = yaml.safe_load(values) or {}
    after = EMPTY.sub(f"  registry: {prefix}", values)
    expected = {key: {**before[key], "registry": prefix} for key in IMAGES if key in before}
    if yaml.safe_load(after) != {**before, **expected}:
        raise ImageError("values.yaml names images in another form: change tools/release/charts.py")
    return after
