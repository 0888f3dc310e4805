# SPDX-License-Identifier: Apache-2.0
"""Logs on standard output: text on a terminal, otherwise one JSON object per line."""

import json
import logging
import sys
from datetime import UTC, datetime

from finetune_trainer.runtime.scrubbing import SCRUBBER


class JsonFormatter(logging.Formatter):
    """`time` (RFC 3339, UTC), `level`, `logger`, `message`, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": SCRUBBER.scrub(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = SCRUBBER.scrub(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """Time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line, and a traceback if there is one."""
        return SCRUBBER.scrub(super().format(record))


def configure() -> None:
    """Send all logs and warnings to standard output."""
    logging.basicConfig(level=logging.INFO, handlers=[_handler()], force=True)
    logging.captureWarnings(capture=True)
    # It logs in each process which CPU kernels it did not find.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def configure_own() -> None:
    """Send our logs to standard output, in a process that configures its own logs."""
    own = logging.getLogger(__name__.partition(".")[0])
    own.setLevel(logging.INFO)
    own.addHandler(_handler())
    own.propagate = False


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        TextFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        if sys.stdout.isatty()
        else JsonFormatter()
    )
    return handler
