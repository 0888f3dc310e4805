# SPDX-License-Identifier: Apache-2.0
"""Where objects are: a namespace of a cluster, or a folder of local runs. Verbs work with both alike."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from finetune_client.errors import OperationError, ProgramExit, UnavailableError

if TYPE_CHECKING:
    from pydantic import BaseModel

Parsed = TypeVar("Parsed", bound="BaseModel")

FOLLOW_SECONDS: Final = 1.0
"""Seconds between two looks for further pods and lines."""
MAX_NAMES: Final = 10
"""Objects that an error about a missing one lists."""

Object = dict[str, Any]
"""An object of the API server as JSON."""


OUTAGE_SECONDS: Final = 120.0
"""Seconds without an answer that a wait survives, such as a restart of the API server."""
Read = TypeVar("Read")


class Outage:
    """Reads in a loop, which an API server that does not answer for a while does not end."""

    def __init__(self) -> None:
        self._began_at: float | None = None

    def read(self, read: Callable[[], Read]) -> Read | None:
        """What `read` returns; None while the API server does not answer.

        Raises:
            OperationError: as `read`; UnavailableError only after OUTAGE_SECONDS.
        """
        try:
            found = read()
        except UnavailableError as error:
            now = time.monotonic()
            if self._began_at is None:
                self._began_at = now
                print(f"finetune: {error}; trying again for {OUTAGE_SECONDS:.0f} s", file=sys.stderr)
            if now - self._began_at >= OUTAGE_SECONDS:
                raise
            return None
        self._began_at = None
        return found


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a container's log."""

    pod: str
    container: str
    text: str


class Backend(Protocol):
    """Objects of one namespace, and what their pods left.

    All methods raise OperationError. Its message names the object, and a missing right by its verb.
    """

    @property
    def namespace(self) -> str:
        """The namespace; local runs have one too."""

    def get(self, kind: str, name: str) -> Object | None:
        """One object; None if it does not exist."""

    def objects(self, kind: str) -> list[Object]:
        """All objects of a kind."""

    def apply(self, manifest: Object) -> Object:
        """Create or update an object as server-side apply does."""

    def patch(self, kind: str, name: str, patch: Object) -> Object:
        """Change an object by a JSON merge patch."""

    def events(self) -> list[Object]:
        """Events about the objects, not sorted."""

    def logs(self, run: str, stage: str | None = None, *, follow: bool = False) -> Iterator[LogLine]:
        """Lines of the pods of a run in the order of its stages; of one stage if it is named.

        With `follow`, waits for more lines and further pods until the run has ended.
        """

    def read(self, uri: str) -> bytes:
        """A file of the store, such as a page that a status names."""


def parse(model: "type[Parsed]", found: Object) -> "Parsed":
    """An object of a backend as the operator's model.

    Raises:
        OperationError: it has values that the model does not know, because the operator is newer.
    """
    # Verbs without objects, such as init, start without pydantic.
    from pydantic import ValidationError

    try:
        return model.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise OperationError(
            f"{model.__name__} {found['metadata']['name']} has a value that this program does not know"
            f" ({field}: {first['msg']}): use the program of the operator's release",
            ["docs/versions.md: which releases work together"],
        ) from error


def runs_no_stage(job: Object) -> bool:
    """Whether a FineTuneJob has ended."""
    # Verbs without objects, such as init, start without the operator's models.
    from finetune_operator.observe.pod_status import has_condition
    from finetune_operator.status.reasons import ConditionType

    return any(has_condition(job, state, "True") for state in (ConditionType.READY, ConditionType.STALLED))


def read_object(backend: Backend, kind: str, name: str, commands: Sequence[str] = ()) -> Object:
    """One object that exists.

    Raises:
        OperationError: it does not exist; the message lists others, and `commands` say where to look.
    """
    found = backend.get(kind, name)
    if found is not None:
        return found
    names = sorted(each["metadata"]["name"] for each in backend.objects(kind))
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    raise OperationError(
        f"{kind} {name} does not exist in namespace {backend.namespace}; there are:"
        f" {', '.join(names[:MAX_NAMES]) or 'none'}{more}",
        commands,
        exit_code=ProgramExit.INVALID,
    )
