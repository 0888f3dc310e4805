# SPDX-License-Identifier: Apache-2.0
"""Subjects without which an evaluation continues."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from finetune_trainer.contract.evaluation import LiveModel, UnmeasuredSubject
from finetune_trainer.contract.vocabulary import ExitCode, Subject
from finetune_trainer.runtime.termination import StageFailure

OPTIONAL: Final[frozenset[Subject]] = frozenset({"Prompted", "Live"})
FINAL_CODES: Final = frozenset({ExitCode.BAD_CONFIG, ExitCode.BAD_DATA})
"""Exit codes of failures that another attempt would repeat."""
MAX_MESSAGE_CHARACTERS: Final = 512

logger = logging.getLogger(__name__)


@contextmanager
def optional(subject: Subject, unmeasured: list[UnmeasuredSubject], live: LiveModel | None) -> Iterator[None]:
    """Record a final failure of the block for an optional subject; any other failure ends the stage.

    `live` is the model of the subject Live.
    """
    try:
        yield
    except StageFailure as failure:
        if subject not in OPTIONAL or failure.exit_code not in FINAL_CODES:
            raise
        logger.warning("%s is not measured: %s", subject, failure.message)
        champion = f"the champion {live.name}: " if subject == "Live" and live is not None else ""
        # Messages of PyTorch have many lines.
        message = " ".join(f"{champion}{failure.message}".split())
        unmeasured.append(UnmeasuredSubject(subject=subject, message=message[:MAX_MESSAGE_CHARACTERS]))
