# SPDX-License-Identifier: Apache-2.0
"""The API server's audit log: every answered request with its user and time."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

READS = frozenset({"get", "list", "watch"})
IGNORED_RESOURCES = frozenset({"leases", "tokenreviews"})
"""Resources whose writes are not changes by an operator."""


@dataclass(frozen=True, slots=True)
class AuditedRequest:
    """One answered request; `code` is its HTTP status. `user` is empty if it was not authenticated."""

    user: str
    verb: str
    resource: str
    namespace: str
    name: str
    code: int
    at: datetime

    @property
    def is_write(self) -> bool:
        """Whether it writes to a resource other than the ignored ones."""
        return self.verb not in READS and self.resource not in IGNORED_RESOURCES


class AuditLog:
    """Reads the log from a mark."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def mark(self) -> int:
        """Position of the present end of the log."""
        return self._path.stat().st_size

    def since(self, mark: int) -> Iterator[AuditedRequest]:
        """Requests that were answered after the mark."""
        for request, _ in self.read(mark):
            yield request

    def read(self, mark: int) -> Iterator[tuple[AuditedRequest, int]]:
        """Requests that were answered after the mark, each with the mark that follows it."""
        for event, following in self.events(mark):
            if event["stage"] != "ResponseComplete":
                continue
            target = event.get("objectRef", {})
            subresource = f"/{target['subresource']}" if "subresource" in target else ""
            request = AuditedRequest(
                user=event["user"].get("username", ""),
                verb=event["verb"],
                resource=target.get("resource", event["requestURI"]) + subresource,
                namespace=target.get("namespace", ""),
                name=target.get("name", ""),
                code=event["responseStatus"].get("code", 0),
                at=datetime.fromisoformat(event["stageTimestamp"]),
            )
            yield request, following

    def events(self, mark: int) -> Iterator[tuple[dict[str, Any], int]]:
        """Events after the mark as JSON, each with the mark that follows it.

        They include the start of requests that have not ended, such as open watches.
        """
        with self._path.open("rb") as log:
            log.seek(mark)
            for line in log:
                if not line.endswith(b"\n"):
                    return
                mark += len(line)
                yield json.loads(line), mark

    def writes(self, mark: int, user: str) -> list[AuditedRequest]:
        """The user's writes after the mark, without leases and token reviews."""
        return [request for request in self.since(mark) if request.user == user and request.is_write]

    def lists(self, mark: int, user: str) -> Counter[str]:
        """Number of the user's lists after the mark, by resource."""
        return Counter(
            request.resource for request in self.since(mark) if (request.user, request.verb) == (user, "list")
        )

    def seconds_since_write(self, user: str) -> float:
        """Seconds since the user's last write, leases and token reviews not counted."""
        last = max((write.at for write in self.writes(0, user)), default=datetime.fromtimestamp(0, UTC))
        return (datetime.now(UTC) - last).total_seconds()
