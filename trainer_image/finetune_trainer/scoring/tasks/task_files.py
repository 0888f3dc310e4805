# SPDX-License-Identifier: Apache-2.0
"""The files of a task: read once, checked, and known by a digest. Nothing of them is executed.

A task file may have the part of lm-evaluation-harness's format that executes and downloads nothing. A file of
this part means the same to the library. Every other field is refused by its name.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

FILE_NAME: Final = r"^[-._a-zA-Z0-9]+$"
"""Name of a key of a ConfigMap."""
UNSUPPORTED: Final[Mapping[str, str]] = {
    "process_docs": "code",
    "process_results": "code",
    "custom_dataset": "code",
    "class": "code",
    "unsafe_code": "code",
    "include": "other files: copy their fields into this one",
    "group": "groups: name their tasks one by one",
    "use_prompt": "prompts of other libraries",
    "doc_to_image": "images",
    "doc_to_audio": "sound",
}
"""Fields of the format that are refused, and what they would need."""


class TaskFileError(Exception):
    """A task cannot be used. The text has the place and the reason, for the user."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataFiles(_Part):
    """Arguments for the dataset, of which only local files are supported."""

    data_files: dict[str, Annotated[str, Field(pattern=FILE_NAME)]]
    """The file of each split, in the folder of the task file."""


class TaskMetric(_Part):
    """A metric of a row, whose mean is the score."""

    metric: str
    aggregation: Literal["mean"] = "mean"
    higher_is_better: Literal[True] = True
    ignore_case: bool = False
    ignore_punctuation: bool = False
    ignore_numbers: bool = False
    regexes_to_ignore: tuple[str, ...] = ()


class TaskFilter(BaseModel):
    """A step from the generated text to what is compared. Other fields are arguments of its function."""

    model_config = ConfigDict(frozen=True, extra="allow")

    function: Literal["lowercase", "regex", "remove_whitespace", "take_first", "uppercase"]


class FilterPipeline(_Part):
    """Steps with a name, which stands in results after the name of a metric."""

    name: str
    filter: Annotated[tuple[TaskFilter, ...], Field(min_length=1)]


class GenerationArguments(_Part):
    """How answers are generated: always the most likely tokens."""

    until: str | tuple[str, ...] = ()
    max_gen_toks: Annotated[int, Field(ge=1, le=4096)] = 256
    do_sample: Literal[False] = False
    temperature: Annotated[float, Field(ge=0, le=0)] = 0


class FewshotConfig(_Part):
    """Examples before a question."""

    sampler: Literal["default", "first_n"] = "default"
    samples: tuple[dict[str, Any], ...] | None = None
    split: str | None = None
    doc_to_text: str | None = None
    doc_to_target: str | None = None
    doc_to_choice: str | list[str] | None = None


class TaskFile(_Part):
    """A task file. Fields without a docstring mean what they mean to the library."""

    task: str
    task_alias: str | None = None
    tag: str | list[str] | None = None
    dataset_path: Literal["json"]
    dataset_name: None = None
    dataset_kwargs: DataFiles
    output_type: Literal["multiple_choice", "generate_until"]
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    doc_to_text: str | int
    doc_to_target: str | int | list[str]
    doc_to_choice: str | list[str] | dict[str, str] | None = None
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    gen_prefix: str | None = None
    fewshot_config: FewshotConfig | None = None
    num_fewshot: Annotated[int, Field(ge=0, le=32)] | None = None
    metric_list: Annotated[tuple[TaskMetric, ...], Field(min_length=1)] | None = None
    generation_kwargs: GenerationArguments | None = None
    repeats: Literal[1] = 1
    filter_list: Annotated[tuple[FilterPipeline, ...], Field(min_length=1)] | None = None
    should_decontaminate: Literal[False] = False
    metadata: dict[str, Any] | None = None

    @property
    def version(self) -> str:
        """Version that its author gave it; empty without one."""
        return str((self.metadata or {}).get("version", ""))

    @property
    def metrics(self) -> Sequence[str]:
        """Names of its metrics, at least one."""
        if self.metric_list is None:
            return _supported(self.output_type)
        return [each.metric for each in self.metric_list]

    @property
    def filters(self) -> Sequence[str]:
        """Names of its filters, at least one."""
        return ["none"] if self.filter_list is None else [each.name for each in self.filter_list]

    @property
    def split(self) -> str:
        """The split that is measured."""
        return self.test_split or self.validation_split or ""

    def config(self) -> dict[str, Any]:
        """The fields that the file sets, as the library's `TaskConfig` has them, without the dataset's."""
        fields = self.model_dump(exclude_unset=True, mode="json")
        return {name: value for name, value in fields.items() if not name.startswith("dataset_")}

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        files = self.dataset_kwargs.data_files
        if not self.split:
            raise ValueError("test_split: name the split of dataset_kwargs.data_files that is measured")
        for field in ("training_split", "validation_split", "test_split", "fewshot_split"):
            split = getattr(self, field)
            if split is not None and split not in files:
                raise ValueError(f"{field}: dataset_kwargs.data_files has no file of {split}")
        unknown = set(self.metrics) - set(_supported(self.output_type))
        if unknown:
            raise ValueError(
                f"metric_list: {sorted(unknown)[0]} of {self.output_type} is not supported; supported:"
                f" {', '.join(_supported(self.output_type))}"
            )
        if self.output_type == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("doc_to_choice: a task of type multiple_choice needs it")
        return self


def _supported(output_type: str) -> Sequence[str]:
    """The metrics that the library computes by default: each has one number per row, and their mean."""
    metrics: Sequence[str] = DEFAULT_METRIC_REGISTRY[output_type]
    return metrics


class _Loader(yaml.SafeLoader):
    """Constructs plain values only."""


def _refuse(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> None:
    del loader, suffix
    raise TaskFileError(
        f"line {node.start_mark.line + 1}: {node.tag} would execute code or read another file, which is not"
        " supported; write templates, or a metric of your own in customMetrics"
    )


_Loader.add_multi_constructor("!", _refuse)


def parse_task_file(text: str) -> TaskFile:
    """The task file. Raises TaskFileError with the field or line."""
    try:
        content = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise TaskFileError(f"it is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise TaskFileError("it is not a YAML mapping of fields")
    for field, needed in UNSUPPORTED.items():
        if field in content:
            raise TaskFileError(f"{field}: not supported, because it needs {needed}")
    if content.get("dataset_path") != "json":
        raise TaskFileError(
            "dataset_path: must be json, with the files in dataset_kwargs.data_files: rows are read from the"
            " ConfigMap of the task file, and nothing is downloaded"
        )
    try:
        return TaskFile.model_validate(content)
    except ValidationError as error:
        raise TaskFileError(_first(error)) from error


def _first(error: ValidationError) -> str:
    """The first error with its field."""
    found = error.errors(include_url=False)[0]
    message = found["msg"].removeprefix("Value error, ")
    field = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        message = "unknown or not supported"
    return f"{field}: {message}" if field else message


COMPRESSED: Final = ".gz"
MAX_FILE_BYTES: Final = 32 * 1024 * 1024
"""Of a file of rows, uncompressed. A ConfigMap holds 1 MiB."""


@dataclass(frozen=True)
class TaskSource:
    """A task file and the rows that it names."""

    file: TaskFile
    rows: Mapping[str, Sequence[dict[str, Any]]]
    """The rows of each split, at least one."""
    digest: str
    """`sha256:` and 64 hexadecimal digits, of the content of all files."""


def read_source(folder: Path, name: str) -> TaskSource:
    """The task in a file of a folder. Raises TaskFileError, which names the file."""
    digest = hashlib.sha256()
    text = _read(folder / name, digest)
    try:
        file = parse_task_file(text.decode())
    except (TaskFileError, ValueError) as error:
        raise TaskFileError(f"{name}: {error}") from error
    rows = {
        split: _rows(folder / data, _read(folder / data, digest))
        for split, data in sorted(file.dataset_kwargs.data_files.items())
    }
    return TaskSource(file, rows, f"sha256:{digest.hexdigest()}")


def _read(path: Path, digest: "hashlib._Hash") -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskFileError(
            f"{path.name}: it cannot be read: {error.strerror}; is it in the ConfigMap?"
        ) from error
    digest.update(hashlib.sha256(content).digest())
    return content


def _rows(path: Path, content: bytes) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_decompress(path, content).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise TaskFileError(f"{path.name}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise TaskFileError(f"{path.name}: line {number} is not a JSON object")
        rows.append(row)
    if not rows:
        raise TaskFileError(f"{path.name}: it has no rows")
    return rows


def _decompress(path: Path, content: bytes) -> bytes:
    if path.suffix != COMPRESSED:
        return content
    reader = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        text = reader.decompress(content, MAX_FILE_BYTES)
    except zlib.error as error:
        raise TaskFileError(f"{path.name}: it is not compressed by gzip: {error}") from error
    if reader.unconsumed_tail:
        raise TaskFileError(f"{path.name}: it has more than {MAX_FILE_BYTES} bytes without compression")
    if not reader.eof:
        raise TaskFileError(f"{path.name}: it ends before its compressed content does")
    return text
