"""What a session of these tests asked of its cluster, for a later session that looks at all lanes' rights."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import or_
from pathlib import Path

import pytest

from tests import rights
from tests.rights import RightsUsage


@dataclass
class LaneSession:
    """One session of pytest on one cluster.

    Attributes:
        audit_log: of the cluster's API server.
        begin: where in it the session began.
        modules: names of the files whose tests were chosen.
        partial: whether tests were chosen by name.
    """

    audit_log: str
    begin: int
    modules: list[str]
    partial: bool

    @classmethod
    def begins(cls, request: pytest.FixtureRequest, audit_log: Path) -> "LaneSession":
        modules = sorted({item.path.name for item in request.session.items})
        size = audit_log.stat().st_size if audit_log.exists() else 0
        return cls(str(audit_log), size, modules, bool(request.config.option.keyword))

    def usage(self, user: str) -> RightsUsage:
        """Which rights `user` used in it."""
        return rights.usage(Path(self.audit_log), self.begin, user)

    def leave(self, folder: Path, name: str) -> None:
        """Write it down for `left_in`, under a name that no other lane uses."""
        (folder / f"{name}.json").write_text(json.dumps(asdict(self)))


def left_in(folder: Path) -> list[LaneSession]:
    """The sessions that other lanes have left."""
    return [LaneSession(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]


def usage_of_all(sessions: Sequence[LaneSession], modules: Iterable[str], user: str) -> RightsUsage | None:
    """Which rights `user` used in all sessions; None where they are only a part of the suite.

    Args:
        sessions: this one, and then those that lanes have left.
        modules: what the whole suite is.
        user: of the API servers.

    Raises:
        AssertionError: there were lanes, and one has left nothing.
    """
    missing = sorted(set(modules).difference(*(each.modules for each in sessions)))
    if any(each.partial for each in sessions) or (missing and len(sessions) == 1):
        return None
    assert missing == [], "no lane has left what these tests asked for"
    return reduce(or_, (each.usage(user) for each in sessions))
