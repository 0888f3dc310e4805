# SPDX-License-Identifier: Apache-2.0
"""The table of results in docs/testing.md, with one row per suite of peers."""

from collections.abc import Sequence
from typing import Final

from tools.bench.page import between, commit, machine, replace, today
from tools.bench.sheet import Sheet
from tools.peers.suites import PEERS, PeerSuite
from tools.suites.durations import PAGE, Result, minutes

BEGIN: Final = "<!-- Written by make test-peers from here -->"
COLUMNS: Final = ("peer", "date", "commit", "tests", "skipped", "min:s")

NEVER: Final = ("", "", "", "", "not yet")
"""The other cells of a peer whose suite has not run."""

PeerResult = tuple[PeerSuite, Result]


def summary(results: Sequence[PeerResult]) -> Sheet:
    """Results of the suites that ran now."""
    date, state = today(), commit(PAGE)
    rows = ((_title(peer), date, state, *_figures(result)) for peer, result in results)
    return Sheet("Peers", COLUMNS, tuple(rows))


def write_results(results: Sequence[PeerResult]) -> None:
    """Replace the rows of these suites in docs/testing.md; the rows of the other suites stay.

    Raises:
        BenchError: the page has no markers.
    """
    lines = map(_cells, between(PAGE, BEGIN).splitlines())
    rows = {_name(cells): cells for cells in lines if len(cells) == len(COLUMNS) and cells[1:] != NEVER}
    rows |= {_name(row): row for row in summary(results).rows}
    table = tuple(rows.get(peer.name) or (_title(peer), *NEVER) for peer in PEERS)
    body = Sheet("Peers", COLUMNS, table).to_markdown()
    replace(PAGE, BEGIN, f"The last suite ran with {machine()}.\n\n{body}")


def _title(peer: PeerSuite) -> str:
    return f"{peer.name}: {peer.title}"


def _name(cells: tuple[str, ...]) -> str:
    """Name of the peer of a row."""
    return cells[0].partition(":")[0]


def _figures(result: Result) -> tuple[str, str, str]:
    return f"{result.tests.total():,}", f"{result.skipped:,}", minutes(result.seconds)


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
