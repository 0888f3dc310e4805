# SPDX-License-Identifier: Apache-2.0
"""Progress of a transfer, on a terminal and in the log of a CI job."""

from io import StringIO

from rich.console import Console

from finetune_client.transfer.display import Display


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_after_ten_seconds_and_no_bar() -> None:
    output, clock = StringIO(), Clock()
    with Display(Console(file=output, width=100), clock) as display:
        count = display.phase("uploading [rows].csv", 4 << 20)
        count(1 << 20)
        clock.now = 11.0
        count(1 << 20)
        clock.now = 12.0
        count(1 << 20)
    assert output.getvalue() == "uploading [rows].csv: 2.0 MiB of 4.0 MiB (50 %)\n"


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end() -> None:
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    with Display(console) as display:
        display.phase("uploading [rows].csv", 4 << 20)(3 << 20)
        display.say("connection lost: trying again")
    printed = output.getvalue()
    assert "uploading [rows].csv" in printed
    assert "3.0/4.0 MiB" in printed
    assert printed.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))


def test_an_empty_phase_is_whole() -> None:
    output, clock = StringIO(), Clock()
    with Display(Console(file=output, width=100), clock) as display:
        count = display.phase("uploading empty", 0)
        clock.now = 11.0
        count(0)
    assert output.getvalue() == "uploading empty: 0 bytes of 0 bytes (100 %)\n"
