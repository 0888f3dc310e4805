# SPDX-License-Identifier: Apache-2.0
"""Read manifests with line numbers, and with the values that kubectl would send.

Scalars are resolved as kubectl's YAML library resolves them: `2e-4` is a number, `yes` is a truth value, and
a date is a string.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, Final

import yaml

from finetune_client.errors import OperationError, ProgramExit
from finetune_client.offline.findings import Finding, Located, Path, Severity, join_field

SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_BYTES: Final = 8 * 2**20
"""Max size of a file; the API server refuses objects above 3 MiB."""
MAX_VALUES: Final = 200_000
"""Max number of values in a document. Aliases count each time, so that a small document cannot be huge."""
MAX_DEPTH: Final = 64


@dataclass(frozen=True, slots=True)
class WrittenObject:
    """One object of a file.

    Attributes:
        file: the file as the user named it; `-` for the standard input.
        value: the object as JSON; a part of it may appear at several places.
        lines: line of each field and list item, from 1; the root is `()`.
        from_folder: whether the user named a folder, in which not every file has to be a manifest.
    """

    file: str
    value: Any
    lines: Mapping[Path, int]
    from_folder: bool = False

    def locate(self, finding: Finding) -> Located:
        """The finding at the line of its field, or of the closest field around it that exists."""
        path = finding.path
        while path not in self.lines:
            path = path[:-1]
        return Located(self.file, self.lines[path], self.kind, self.name, finding)

    @property
    def kind(self) -> str:
        return _text(self.value, "kind")

    @property
    def name(self) -> str:
        metadata = self.value.get("metadata") if isinstance(self.value, dict) else None
        return _text(metadata, "name") or _text(metadata, "generateName")

    @property
    def namespace(self) -> str:
        """The namespace; empty if the object names none."""
        return _text(self.value.get("metadata") if isinstance(self.value, dict) else None, "namespace")


def _text(value: Any, key: str) -> str:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """Text of one file."""

    file: str
    text: str
    from_folder: bool = False


def find_files(folder: File) -> list[File]:
    """Files of a folder and below that may have manifests, by name; hidden ones are left out."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def read_text(data: bytes) -> str:
    """The text of a file.

    Raises:
        ValueError: it is too large, or not UTF-8.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES // 2**20} MiB: name the files that have manifests")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} is not UTF-8: save the file as UTF-8, or name the files that have manifests"
        ) from error


def read_manifests(source: ManifestFile) -> Iterator[WrittenObject | Located]:
    """Objects of a file in their order, those of a List one by one, and what cannot be read.

    A mistake in one document does not hide the other ones.
    """
    for first_line, text in _split(source.text):
        try:
            yield from _read_document(source, first_line, text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            yield _unreadable(source, first_line, text, mark.line if mark else 0, str(error.problem))
        except _UnreadableError as error:
            yield _unreadable(source, first_line, text, error.line, str(error))
        except yaml.YAMLError as error:
            yield _unreadable(source, first_line, text, 0, str(error))


def read_objects(path: File) -> list[dict[str, Any]]:
    """Objects of a file, with the values that kubectl would send. Raises OperationError as `read_written`."""
    return [each.value for each in read_written(path)]


def read_written(path: File) -> list[WrittenObject]:
    """Objects of a file, with their lines and the values that kubectl would send.

    Raises:
        OperationError: the file, or a document of it, cannot be read, or is not an object.
    """
    try:
        source = ManifestFile(str(path), read_text(path.read_bytes()))
    except OSError as error:
        raise OperationError(f"{path}: {error.strerror}", exit_code=ProgramExit.INVALID) from error
    except ValueError as error:
        raise OperationError(f"{path}: {error}", exit_code=ProgramExit.INVALID) from error
    objects = []
    for each in read_manifests(source):
        if isinstance(each, Located):
            raise OperationError(str(each), exit_code=ProgramExit.INVALID)
        if not isinstance(each.value, dict):
            line = each.lines[()]
            raise OperationError(
                f"{path}:{line}: a document is a {type(each.value).__name__}, not an object",
                exit_code=ProgramExit.INVALID,
            )
        objects.append(each)
    return objects


def _unreadable(source: ManifestFile, first_line: int, text: str, line: int, problem: str) -> Located:
    """A document that cannot be read. `line` counts from its first line."""
    shown = text.split("\n")[line : line + 1]
    if "\t" in "".join(shown):
        problem = "a tab in the indentation or after a ':': write spaces"
    elif "{{" in "".join(shown):
        problem = "a template: render it first, for example with helm template … | finetune validate -"
    elif "mapping values are not allowed" in problem:
        problem += ": put text that has ': ' into quotes, and check the indentation"
    message = f"the YAML cannot be read: {problem}"
    return Located(source.file, first_line + line, "", "", Finding(Severity.ERROR, (), "", message))


def _split(text: str) -> Iterator[tuple[int, str]]:
    """The documents of a file, each with the number of its first line, divided as kubectl divides them."""
    first, lines = 1, list[str]()
    for number, line in enumerate(text.split("\n"), start=1):
        if re.match(r"---(\s|$)", line) and lines:
            yield first, "\n".join(lines)
            first, lines = number, []
        lines.append(line)
    yield first, "\n".join(lines)


class _UnreadableError(Exception):
    """A document is not a JSON value. `line` counts from the first line of the document."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


PLAIN: Final = "plain"
"""Tag of scalars without quotes and tag."""
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """Composes nodes, and leaves scalars unresolved."""

    yaml_implicit_resolvers: Final = {None: [(PLAIN, re.compile(""))]}


def _read_document(source: ManifestFile, first_line: int, text: str) -> Iterator[WrittenObject | Located]:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    finally:
        loader.dispose()
    if node is None:
        return
    reader = _Reader(first_line)
    value = reader.read(node, ())
    if value is None:
        return
    prefixes: list[Path] = [()]
    if _text(value, "kind").endswith("List") and isinstance(value.get("items"), list):
        prefixes = [("items", index) for index in range(len(value["items"]))]
    for prefix in prefixes:
        start = len(prefix)
        lines = {path[start:]: line for path, line in reader.lines.items() if path[:start] == prefix}
        part = value["items"][prefix[1]] if prefix else value
        manifest = WrittenObject(source.file, part, lines, source.from_folder)
        yield manifest
        for path in reader.duplicates:
            if path[:start] == prefix:
                own = path[start:]
                text = "the field occurs twice: keep one"
                yield manifest.locate(Finding(Severity.ERROR, own, join_field(own), text))


class _Reader:
    """Makes JSON of a document's nodes.

    Attributes:
        lines: line of each field and item.
        duplicates: paths of fields that occur twice.
    """

    def __init__(self, first_line: int) -> None:
        self._first_line = first_line
        self.lines: dict[Path, int] = {}
        self.duplicates: list[Path] = []

    def read(self, node: yaml.Node, path: Path, line: int | None = None) -> Any:
        """The value of a node. `line` is that of the key of a field."""
        own = node.start_mark.line
        if len(self.lines) >= MAX_VALUES:
            raise _UnreadableError(f"the document has more than {MAX_VALUES:,} values", own)
        if len(path) > MAX_DEPTH:
            raise _UnreadableError(f"the document has more than {MAX_DEPTH} levels, or contains itself", own)
        self.lines[path] = self._first_line + (own if line is None else line)
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(each, (*path, index)) for index, each in enumerate(node.value)]
        return _resolve(node)

    def _read_mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for key_node, child in node.value:
            if key_node.tag == PLAIN and key_node.value == "<<":
                for each in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    shared = self.read(each, (*path, "<<"))
                    if not isinstance(shared, dict):
                        raise _UnreadableError("<< needs objects", each.start_mark.line)
                    value = {**shared, **value}
        seen = set[str]()
        for key_node, child in node.value:
            if key_node.tag == PLAIN and key_node.value == "<<":
                continue
            key = self._key(key_node)
            if key in seen:
                self.duplicates.append((*path, key))
            seen.add(key)
            value[key] = self.read(child, (*path, key), key_node.start_mark.line)
        return value

    def _key(self, node: yaml.Node) -> str:
        key = _resolve(node) if isinstance(node, yaml.ScalarNode) else None
        if key is None:
            raise _UnreadableError(
                "the name of a field is not text: put it into quotes", node.start_mark.line
            )
        return str(key).lower() if isinstance(key, bool) else str(key)


_WORDS: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **{
        word: truth
        for truth, texts in ((True, ("true", "yes", "y", "on")), (False, ("false", "no", "n", "off")))
        for text in texts
        for word in (text, text.capitalize(), text.upper())
    },
}
_INTEGER: Final = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO]?[0-7]*|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LARGE: Final = 1e21
"""From here on JSON writes a number without a fraction with an exponent."""
_MAX_DIGITS: Final = 80
"""More than 64 bits need in any base. A longer number is a fraction, as for kubectl."""
_TAG: Final = "tag:yaml.org,2002:"


def _resolve(node: yaml.Node) -> Any:
    """The JSON value of a scalar."""
    text = str(node.value)
    if node.tag in {f"{_TAG}str", f"{_TAG}timestamp"}:
        return text
    if node.tag not in {PLAIN, *(f"{_TAG}{name}" for name in ("int", "float", "bool", "null"))}:
        raise _UnreadableError(f"the tag {node.tag} is not allowed in a manifest", node.start_mark.line)
    if text in _WORDS:
        return _WORDS[text]
    plain = text.replace("_", "")
    if len(plain) < _MAX_DIGITS and _INTEGER.fullmatch(plain):
        integer = int(re.sub(r"^([-+]?)0[oO]?(?=[0-7])", r"\g<1>0o", plain), 0)
        if abs(integer) < _LARGE:
            return integer
    if _FLOAT.fullmatch(plain):
        number = float(plain)
        if math.isinf(number):
            raise _UnreadableError(f"{text} is too large a number", node.start_mark.line)
        return int(number) if number.is_integer() and abs(number) < _LARGE else number
    return text
