# SPDX-License-Identifier: Apache-2.0
"""Copy the pages to the folder that Sphinx reads.

README becomes the first page, and CONTRIBUTING and ROADMAP are pages of their own. A link to a file that
is not a page, such as a source file, becomes its path, because the site does not contain the file.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
FENCE: Final = re.compile(r"^ *```")
NAVIGATION: Final = {
    "Use": (
        "README",
        "features",
        "quickstart",
        "local-runs",
        "program",
        "models",
        "glossary",
        "data",
        "report",
        "training",
        "methods",
        "devices",
        "sizing",
        "storage",
        "evaluation",
        "scores",
        "judges",
        "results",
        "schedules",
        "sweeps",
        "promotion",
        "endpoints",
        "serving",
        "rollouts",
        "ownership",
        "coming-from",
    ),
    "Reference": ("api", "conditions", "metrics"),
    "Operate": (
        "installation",
        "upgrading",
        "gitops",
        "profiles",
        "costs",
        "tenants",
        "kueue",
        "failures",
        "troubleshooting",
        "runbooks/README",
        "images",
        "versions",
        "releases",
        "benchmarks",
    ),
    "Contribute": (
        "contributing",
        "roadmap",
        "architecture",
        "extending",
        "testing",
        "demo",
        "cluster",
        "decisions/README",
    ),
}
NESTED: Final = {
    "api.md": "api/*",
    "decisions/README.md": "decisions/*",
    "runbooks/README.md": "runbooks/*",
}
"""Children in the navigation, by the page that lists them."""


def stage(root: Path, target: Path) -> None:
    """Write the sources of the site of the repository `root` to the folder `target`."""
    docs = root / "docs"
    pages = {path: path.relative_to(docs) for path in sorted(docs.rglob("*.md"))}
    pages |= {
        root / "README.md": Path("index.md"),
        root / "CONTRIBUTING.md": Path("contributing.md"),
        root / "ROADMAP.md": Path("roadmap.md"),
    }
    for path in docs.rglob("*"):
        if path.is_file() and path not in pages:
            place = target / path.relative_to(docs)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    for path, name in pages.items():
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(_relinked(path, name, pages, root) + _navigation(name, pages))


def _relinked(path: Path, name: Path, pages: dict[Path, Path], root: Path) -> str:
    def link(match: re.Match[str]) -> str:
        image, text, address, anchor = match[1], match[2], match[3], match[4] or ""
        if not address or "://" in address or address.startswith("mailto:"):
            return match[0]
        file = Path(os.path.normpath(path.parent / address))
        if file.is_dir() and file / "README.md" in pages:
            file = file / "README.md"
        if file in pages:
            return f"{image}[{text}]({os.path.relpath(pages[file], name.parent)}{anchor})"
        if file.is_relative_to(root / "docs") and file.is_file():
            return f"{image}[{text}]({os.path.relpath(file.relative_to(root / 'docs'), name.parent)}{anchor})"
        where = f"`{file.relative_to(root)}`"
        return text if text == where or text == where.strip("`") else f"{text} ({where})"

    return "".join(line if code else LINK.sub(link, line) for line, code in _lines(path.read_text()))


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it belongs to a code block."""
    code = False
    for line in text.splitlines(keepends=True):
        fence = FENCE.match(line) is not None
        yield line, code or fence
        code = code != fence


def _navigation(name: Path, pages: dict[Path, Path]) -> str:
    names = {str(page.with_suffix("")) for page in pages.values()}
    if name == Path("index.md"):
        return "".join(
            f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n"
            + "".join(f"{entry}\n" for entry in entries if entry in names)
            + "```\n"
            for caption, entries in NAVIGATION.items()
        )
    if str(name) not in NESTED:
        return ""
    children = sorted(
        page for page in names if Path(page).match(NESTED[str(name)]) and Path(page).name != "README"
    )
    entries = "".join(f"/{child}\n" for child in children)
    return f"\n```{{toctree}}\n:hidden:\n\n{entries}```\n"
