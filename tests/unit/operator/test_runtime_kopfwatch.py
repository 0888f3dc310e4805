# SPDX-License-Identifier: Apache-2.0
"""Settings of Kopf."""

import itertools

from finetune_operator.runtime.kind_watch import _settings


def test_kopf_never_gives_a_watch_up() -> None:
    """Otherwise a failure of one watch would end all watches without an error."""
    delays = list(itertools.islice(_settings().networking.error_backoffs, 10_000))  # type: ignore[arg-type]
    assert len(delays) == 10_000
    assert max(delays) <= 10
