# SPDX-License-Identifier: Apache-2.0
"""Records of the sessions' requests, for a later session that checks the rights of all lanes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import or_
from pathlib import Path

import pytest

from tests import rights
from tests.rights import RightsUsage


def selected(request: pytest.FixtureRequest, parameter: str) -> set[object]:
    """The values of a parameter in the selected tests, so that objects are made for these only."""
    items = (item for item in request.session.items if isinstance(item, pytest.Function))
    return {item.callspec.params.get(parameter) for item in items if hasattr(item, "callspec")}


@dataclass
class LaneSession:
    """One pytest session on one cluster.

    Attributes:
        audit_log: path of the API server's audit log.
        begin: position in the log at which the session began.
        modules: names of the files with selected tests.
        partial: whether tests were selected by name.
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
        """The rights that `user` used in the session."""
        return rights.usage(Path(self.audit_log), self.begin, user)

    def leave(self, folder: Path, name: str) -> None:
        """Write the record for `left_in`, under a name that no other lane uses."""
        (folder / f"{name}.json").write_text(json.dumps(asdict(self)))


def left_in(folder: Path) -> list[LaneSession]:
    """The records that other lanes have left."""
    return [LaneSession(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]


def usage_of_all(sessions: Sequence[LaneSession], modules: Iterable[str], user: str) -> RightsUsage | None:
    """The rights that `user` used in all sessions; None if they are only a part of the suite.

    Args:
        sessions: this session, and those of the lanes.
        modules: all modules of the suite.
        user: user name at the API servers.

    Raises:
        AssertionError: a lane has left no record.
    """
    missing = sorted(set(modules).difference(*(each.modules for each in sessions)))
    if any(each.partial for each in sessions) or (missing and len(sessions) == 1):
        return None
    assert missing == [], "no lane has left a record of these modules"
    return reduce(or_, (each.usage(user) for each in sessions))
