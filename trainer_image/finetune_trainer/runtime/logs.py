# SPDX-License-Identifier: Apache-2.0
"""Logs on standard output, and the redaction of credentials in all text that leaves the process.

Logs are text on a terminal, otherwise one JSON object per line. Servers quote what they receive: in reason
phrases, in bodies, in redirect locations. These texts reach logs, conditions and the store, which more people
may read than Secrets.
"""

import base64
import html
import json
import logging
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

REDACTED: Final = "[redacted]"
MIN_SECRET_LENGTH: Final = 4
"""Min characters of a redacted credential. Shorter ones are part of too many words."""
MIN_PUBLIC_LENGTH: Final = 8
"""Min characters of a redacted name or query parameter. Shorter ones are often common words, no secrets."""
PIECE_LENGTH: Final = 12
"""Characters of a redacted piece of a credential, because messages and libraries truncate text."""
MIN_PIECEWISE_LENGTH: Final = 16
"""Min characters of a credential that is redacted by pieces. Shorter ones are redacted as a whole."""

HTTP_URL: Final = re.compile(
    r"(https?://)(?:[^\s/?#'\"<>@]*@)?([^\s?#'\"<>]*)(\?[^\s'\"<>)]*|#[^\s'\"<>)]*)?"
)
FIRST_OWN_CHARACTER: Final = (0, 2, 3)
"""Index of the first base64 character that depends on a value alone, by the number of bytes before it."""
LOWERCASE: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
"""Table for str.translate. It keeps the length of a text, as str.lower does not for every character."""
CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Scrubber:
    """Redacts values in texts, in all forms that servers and libraries use."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._whole: tuple[str, ...] = ()
        self._pieces: frozenset[str] = frozenset()

    def add(self, *values: str | None) -> None:
        """Redact these values in every text from now on."""
        new = {value for value in values if value} - self._values
        self._values |= new
        forms = {form for value in new for form in _forms(value)}
        whole = {form for form in forms if MIN_SECRET_LENGTH <= len(form) < MIN_PIECEWISE_LENGTH}
        # The longest first, so that a form that begins with another is redacted completely.
        self._whole = tuple(sorted(whole.union(self._whole), key=lambda form: (-len(form), form)))
        self._pieces |= {
            form.translate(LOWERCASE)[start : start + PIECE_LENGTH]
            for form in forms
            if len(form) >= MIN_PIECEWISE_LENGTH
            for start in range(len(form) - PIECE_LENGTH + 1)
        }

    def add_uri(self, uri: str) -> None:
        """Redact the query values of a URL, and the user name and password before its host."""
        if not uri.startswith(("https://", "http://")):
            return
        parts = urlsplit(uri)
        # Shorter values, such as a year, are not secret.
        values = (value for _, value in parse_qsl(parts.query) if len(value) >= MIN_PUBLIC_LENGTH)
        name, _, password = parts.netloc.rpartition("@")[0].partition(":")
        self.add(parts.query, *values, unquote(password), name if len(name) >= MIN_PUBLIC_LENGTH else None)

    def scrub(self, text: str) -> str:
        """Return the text without the values, and without the query and the user of any URL."""
        text = HTTP_URL.sub(r"\1\2", text)
        for form in self._whole:
            text = text.replace(form, REDACTED)
        return self._without_pieces(text) if self._pieces else text

    def _without_pieces(self, text: str) -> str:
        folded, kept, end = text.translate(LOWERCASE), [], 0
        start = 0
        while start <= len(folded) - PIECE_LENGTH:
            if folded[start : start + PIECE_LENGTH] not in self._pieces:
                start += 1
                continue
            kept += [text[end:start], REDACTED]
            end = start + PIECE_LENGTH
            while end < len(folded) and folded[end - PIECE_LENGTH + 1 : end + 1] in self._pieces:
                end += 1
            start = end
        return "".join((*kept, text[end:]))


def one_line(text: str, max_length: int) -> str:
    """Return the first line of a text without control characters, truncated to `max_length` characters."""
    line = CONTROL_CHARACTERS.sub(" ", text.strip().partition("\n")[0]).strip(" ,.;")
    return line if len(line) <= max_length else f"{line[:max_length]}…"


def _forms(value: str) -> Iterator[str]:
    """Yield the forms of a value that may appear in a text."""
    value = value.strip()
    yield value
    yield quote(value, safe="")
    yield quote(quote(value, safe=""), safe="")
    yield quote_plus(value)
    yield unquote(value)
    yield json.dumps(value)[1:-1]
    yield repr(value)[1:-1]
    yield html.escape(value)
    content = value.encode()
    yield content.hex()
    if len(content) < MIN_SECRET_LENGTH:
        return
    for skipped in range(3):
        # These characters depend on the value alone, wherever it starts in the encoded content.
        whole = base64.b64encode(bytes(skipped) + content).decode().rstrip("=")
        inner = whole[FIRST_OWN_CHARACTER[skipped] : len(whole) - ((skipped + len(content)) % 3 > 0)]
        yield inner
        yield inner.translate({ord("+"): "-", ord("/"): "_"})


SCRUBBER: Final = Scrubber()
"""Scrubber of this process."""


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


def configure_logs() -> None:
    """Send all logs and warnings to standard output."""
    logging.basicConfig(level=logging.INFO, handlers=[_handler()], force=True)
    logging.captureWarnings(capture=True)
    # It logs in each process which CPU kernels it did not find.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)


def configure_own_logs() -> None:
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
