# SPDX-License-Identifier: Apache-2.0
"""Compare the code of two commits without module names: `python -m hack.moved_code BEFORE [AFTER]`.

A commit that moves or merges modules changes names of modules and imports, nothing else. Each top-level
statement of the product, the tools and the generators is reduced to its syntax tree without imports, module
prefixes and names of modules in strings. Without AFTER, the second side is the working tree. Prints the
statements that only one side has, except for loggers and aliases for type checkers; the exit code is 1 if
there are any.
"""

import ast
import difflib
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

PACKAGES: Final = (
    Path("client/finetune_client"),
    Path("operator/finetune_operator"),
    Path("trainer_image/finetune_trainer"),
    Path("tools"),
    Path("hack"),
)
NAMES: Final = tuple(package.name for package in PACKAGES)
MODULE_IN_TEXT: Final = re.compile(rf"\b(?:{'|'.join(NAMES)})(?:[./]\w+)+")


class _WithoutModules(ast.NodeTransformer):
    """Replaces `module.name` by `name`, removes imports, and module names from strings."""

    def __init__(self, tree: ast.Module, modules: set[str]) -> None:
        self.modules: set[str] = set()
        self.names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(NAMES):
                for alias in node.names:
                    local = alias.asname or alias.name
                    if f"{node.module}.{alias.name}" in modules:
                        self.modules.add(local)
                    else:
                        self.names[local] = alias.name

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """A name of a module of ours is a plain name."""
        if isinstance(node.value, ast.Name) and node.value.id in self.modules:
            return ast.Name(node.attr, node.ctx)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A name that was imported under another one is the original."""
        if node.id in self.modules:
            return ast.Name("module", node.ctx)
        return ast.Name(self.names.get(node.id, node.id), node.ctx)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """A parameter may have the name of a module."""
        arguments = node.args
        parameters = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        hidden, self.modules = self.modules, self.modules - parameters
        bare = self.generic_visit(node)
        self.modules = hidden
        return bare

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """Names of modules in texts say nothing about the code."""
        if isinstance(node.value, str):
            return ast.Constant(MODULE_IN_TEXT.sub("module", node.value))
        return node

    def visit_Import(self, node: ast.Import) -> None:
        """Imports are not compared."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Imports are not compared."""


def statements(sources: dict[str, str]) -> set[str]:
    """The top-level statements of the modules, without names of modules; `sources` are by name."""
    found = set()
    for source in sources.values():
        tree = ast.parse(source)
        if ast.get_docstring(tree) is not None:
            del tree.body[0]
        bare = _WithoutModules(tree, set(sources))
        for node in tree.body:
            if (bare_node := bare.visit(node)) is not None:
                found.add(ast.unparse(ast.fix_missing_locations(bare_node)))
    not_compared = ("if TYPE_CHECKING:", "logger = logging.getLogger(__name__)")
    return {text for text in found if not text.startswith(not_compared)}


def sources_in(root: Path) -> dict[str, str]:
    """Source of each module in a checkout, by the module's name."""
    sources = {}
    for package in PACKAGES:
        for file in (root / package).rglob("*.py"):
            module = file.relative_to(root / package.parent).with_suffix("")
            sources[".".join(module.parts).removesuffix(".__init__")] = file.read_text()
    return sources


def sources_of(commit: str) -> dict[str, str]:
    """Source of each module of a commit, by the module's name; the commit may lack some of the packages."""
    listed = ["git", "ls-tree", "--name-only", commit, *map(str, PACKAGES)]
    present = subprocess.run(listed, capture_output=True, check=True, text=True).stdout.splitlines()
    archive = subprocess.run(["git", "archive", commit, *present], capture_output=True, check=True)
    with TemporaryDirectory() as root:
        subprocess.run(["tar", "--extract", f"--directory={root}"], input=archive.stdout, check=True)
        return sources_in(Path(root))


def main() -> int:
    """Print what differs; 1 if something does."""
    before, *after = sys.argv[1:]
    old = statements(sources_of(before))
    new = statements(sources_of(after[0]) if after else sources_in(Path()))
    gone, added = sorted(old - new), sorted(new - old)
    old_lines, new_lines = ("\n".join(side).splitlines() for side in (gone, added))
    for line in difflib.unified_diff(old_lines, new_lines, "before", "after", lineterm="", n=1):
        print(line)
    print(f"{len(new)} statements, {len(gone)} only before, {len(added)} only after", file=sys.stderr)
    return 1 if gone or added else 0


if __name__ == "__main__":
    sys.exit(main())
