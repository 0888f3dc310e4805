# SPDX-License-Identifier: Apache-2.0
"""The resources of a measured program are those of all its processes."""

import subprocess
import sys

from tools.bench.program import peak_bytes, resident_bytes

HELD = 96 << 20
HOLDS = f"held = b'x' * {HELD}; print('held', flush=True); input()"
STARTS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLDS!r}])"


def test_the_memory_of_a_process_is_that_of_its_descendants_too() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"

        assert peak_bytes(process.pid) < HELD < resident_bytes(process.pid)

        process.communicate(b"\n", timeout=60)
    assert resident_bytes(process.pid) == 0
