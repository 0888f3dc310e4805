# SPDX-License-Identifier: Apache-2.0
"""Logs on standard output: one JSON object per line, or text."""

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter


def configure_logs(level: str, format_: Literal["json", "text"]) -> None:
    """Write all records of `level` and above to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        JsonFormatter(
            "{levelname}{name}{message}",
            style="{",
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
        )
        if format_ == "json"
        else logging.Formatter("{asctime} {levelname:7} {name}: {message}", style="{")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Kopf logs at INFO what it does with each object, and warns about signals that the operator handles.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, root.level))
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
