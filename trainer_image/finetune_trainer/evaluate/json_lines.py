# SPDX-License-Identifier: Apache-2.0
"""Files of JSON lines in the run's folder, which a later process of the stage continues.

The first line is a header with the format of the file; every other line is one record.
"""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

if TYPE_CHECKING:
    from finetune_trainer.store import RunFolder


logger = logging.getLogger(__name__)


class JsonLine(BaseModel):
    """A line of such a file."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)


class JsonLinesHeader(JsonLine):
    """The first line."""

    format: Annotated[int, Field(ge=1)]


Header = TypeVar("Header", bound=JsonLinesHeader)
Line = TypeVar("Line", bound=JsonLine)


def to_content(lines: Iterable[JsonLine]) -> bytes:
    """The content of a file with these lines."""
    return "".join(f"{line.model_dump_json(by_alias=True, exclude_none=True)}\n" for line in lines).encode()


def read_lines(
    folder: "RunFolder", name: str, header: type[Header], line: type[Line], version: int
) -> tuple[Header, list[Line]] | None:
    """Read a file.

    Returns None if there is no file, if its format is not `version`, or if it is damaged, which is logged.

    Raises StageFailure (STORE_UNAVAILABLE).
    """
    content = folder.read(name)
    if content is None:
        return None
    try:
        first, *lines = content.splitlines()
        found = header.model_validate_json(first)
        return (found, list(map(line.model_validate_json, lines))) if found.format == version else None
    except (ValueError, ValidationError) as error:
        logger.warning("%s/%s is damaged and ignored: %s", folder.uri, name, error)
        return None
