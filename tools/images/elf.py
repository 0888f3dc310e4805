# SPDX-License-Identifier: Apache-2.0
"""Read the dependencies and symbols of shared libraries, as the dynamic loader does."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection


@dataclass(frozen=True)
class Symbol:
    """A dynamic symbol that a library defines; `version` is empty if it has none."""

    name: str
    version: str
    is_object: bool
    size: int


def needed(library: Path) -> list[str]:
    """File names of the libraries that `library` requires (DT_NEEDED)."""
    return _dynamic(library, "DT_NEEDED", "needed")


def soname(library: Path) -> str:
    """Name by which other libraries require it (DT_SONAME); its file name if it declares none."""
    return next(iter(_dynamic(library, "DT_SONAME", "soname")), library.name)


def closure(roots: list[Path], available: list[Path]) -> set[Path]:
    """The `available` libraries that the loader maps when it loads `roots`."""
    by_name = {path.name: path for path in available}
    found: set[Path] = set()
    pending = list(roots)
    while pending:
        required = {by_name[name] for name in needed(pending.pop()) if name in by_name}
        pending.extend(required - found)
        found |= required
    return found


def defined_symbols(library: Path) -> Iterator[Symbol]:
    """The functions and objects that `library` exports, each name once.

    Raises:
        TypeError: it is not a shared library.
    """
    with library.open("rb") as stream:
        elf = ELFFile(stream)
        table = elf.get_section_by_name(".dynsym")
        if not isinstance(table, SymbolTableSection):
            raise TypeError(f"{library} is not a shared library: it has no dynamic symbols")
        versions = _versions(elf)
        numbers = elf.get_section_by_name(".gnu.version")
        seen = set()
        for index, entry in enumerate(table.iter_symbols()):
            # SHN_ABS marks names of versions.
            if entry["st_shndx"] in {"SHN_UNDEF", "SHN_ABS"} or not entry.name or entry.name in seen:
                continue
            seen.add(entry.name)
            number = numbers.get_symbol(index)["ndx"] if isinstance(numbers, GNUVerSymSection) else 0
            is_object = entry["st_info"]["type"] == "STT_OBJECT"
            yield Symbol(entry.name, versions.get(number, ""), is_object, entry["st_size"])


def _dynamic(library: Path, tag: str, attribute: str) -> list[str]:
    with library.open("rb") as stream:
        section = ELFFile(stream).get_section_by_name(".dynamic")
        if not isinstance(section, DynamicSection):
            return []
        return [getattr(entry, attribute) for entry in section.iter_tags(tag)]


def _versions(elf: ELFFile) -> dict[int, str]:
    section = elf.get_section_by_name(".gnu.version_d")
    if not isinstance(section, GNUVerDefSection):
        return {}
    return {
        definition["vd_ndx"]: next(iter(names)).name
        for definition, names in section.iter_versions()
        if not definition["vd_flags"] & 1  # the library's own name, which is not a version
    }
