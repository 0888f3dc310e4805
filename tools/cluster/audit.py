"""The API server's audit log: what was really asked, by whom, and when."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

READS = frozenset({"get", "list", "watch"})
IGNORED_RESOURCES = frozenset({"leases", "tokenreviews"})
"""Resources whose writes say nothing about what an operator changes."""


@dataclass(frozen=True, slots=True)
class AuditedRequest:
    """One answered request."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    at: datetime

    @property
    def is_write(self) -> bool:
        """Whether it changes what an operator is there to change: neither a read, nor apart."""
        return self.verb not in READS and self.resource not in IGNORED_RESOURCES


class AuditLog:
    """Reads the log from a mark on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mark(self) -> int:
        """Where the log ends now."""
        return self._path.stat().st_size

    def since(self, mark: int) -> Iterator[AuditedRequest]:
        """Requests that were answered after the mark."""
        for asked, _ in self.read(mark):
            yield asked

    def read(self, mark: int) -> Iterator[tuple[AuditedRequest, int]]:
        """Requests that were answered after the mark, each with the mark that follows it."""
        for event, following in self.events(mark):
            if event["stage"] != "ResponseComplete":
                continue
            about = event.get("objectRef", {})
            subresource = f"/{about['subresource']}" if "subresource" in about else ""
            asked = AuditedRequest(
                user=event["user"]["username"],
                verb=event["verb"],
                resource=about.get("resource", event["requestURI"]) + subresource,
                namespace=about.get("namespace", ""),
                name=about.get("name", ""),
                code=event["responseStatus"].get("code", 0),
                at=datetime.fromisoformat(event["stageTimestamp"]),
            )
            yield asked, following

    def events(self, mark: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Lines after the mark as they stand there, each with the mark that follows it.

        Beside answers these are the beginnings of some: a watch that is open has no end yet.
        """
        with self._path.open("rb") as log:
            log.seek(mark)
            for line in log:
                if not line.endswith(b"\n"):
                    return
                mark += len(line)
                yield json.loads(line), mark

    def writes(self, mark: int, user: str) -> list[AuditedRequest]:
        """The user's writes after the mark, leases and token reviews apart."""
        return [asked for asked in self.since(mark) if asked.user == user and asked.is_write]

    def seconds_since_write(self, user: str) -> float:
        """How long ago the user last wrote anything but leases."""
        last = max((asked.at for asked in self.writes(0, user)), default=datetime.fromtimestamp(0, UTC))
        return (datetime.now(UTC) - last).total_seconds()
