# SPDX-License-Identifier: Apache-2.0
"""The memory benchmark fails for a process that needs more than its share."""

from tools.bench.memory.page import Peaks, problems, sheet

SHARE = 1000 << 20
PEAKS: Peaks = {
    "start": [{"bytes": 1600 << 20, "share": SHARE}, {"bytes": 1601 << 20, "share": SHARE}],
    "save": [{"bytes": 900 << 20, "share": SHARE}, {"bytes": 0, "share": SHARE}],
}


def test_a_process_beyond_its_limit_is_named() -> None:
    assert problems(PEAKS) == ["start, rank 1: 1,601 MiB exceed 1,600 MiB"]


def test_the_table_has_a_column_per_process() -> None:
    table = sheet(PEAKS)

    assert table.columns[-2:] == ("rank 0", "rank 1")
    assert table.rows[0] == ("start", "1,000", "1,600", "1,600", "1,601")
