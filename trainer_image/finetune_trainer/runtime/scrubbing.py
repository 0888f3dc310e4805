"""Texts that leave this process, without the credentials that it holds.

Servers quote what they were sent: in reason phrases, in bodies, in the places that they redirect to. What
they say reaches logs, conditions and the store, which more people may read than Secrets.
"""

import base64
import html
import json
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

REDACTED: Final = "[redacted]"
MIN_SECRET_LENGTH: Final = 4
"""Characters of a credential that is looked for; shorter ones are part of too many words."""
MIN_PUBLIC_LENGTH: Final = 8
"""Of names and of parameters that may be no proof of anything, and then are usual words."""
PIECE_LENGTH: Final = 12
"""A piece of a credential that is this long is taken out too: messages are cut, and libraries cut them."""
MIN_PIECEWISE_LENGTH: Final = 16
"""From this length on a credential is looked for piece by piece; shorter ones as a whole."""

HTTP_URL: Final = re.compile(
    r"(https?://)(?:[^\s/?#'\"<>@]*@)?([^\s?#'\"<>]*)(\?[^\s'\"<>)]*|#[^\s'\"<>)]*)?"
)
FIRST_OWN_CHARACTER: Final = (0, 2, 3)
"""The first character of base64 that hangs on nothing before a value, by the bytes before it."""
LOWERCASE: Final = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
"""For str.translate: the length stays, as it does not for every character of str.lower."""
CONTROL_CHARACTERS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class Scrubber:
    """Takes what it was given, in the forms that servers and libraries give it, out of texts."""

    def __init__(self) -> None:
        self._values: set[str] = set()
        self._whole: tuple[str, ...] = ()
        self._pieces: frozenset[str] = frozenset()

    def hold(self, *values: str | None) -> None:
        """Take these values out of every text from now on."""
        new = {value for value in values if value} - self._values
        self._values |= new
        forms = {form for value in new for form in _forms(value)}
        whole = {form for form in forms if MIN_SECRET_LENGTH <= len(form) < MIN_PIECEWISE_LENGTH}
        # The longest first, so that nothing is left of one that begins with another.
        self._whole = tuple(sorted(whole.union(self._whole), key=lambda form: (-len(form), form)))
        self._pieces |= {
            form.translate(LOWERCASE)[start : start + PIECE_LENGTH]
            for form in forms
            if len(form) >= MIN_PIECEWISE_LENGTH
            for start in range(len(form) - PIECE_LENGTH + 1)
        }

    def hold_uri(self, uri: str) -> None:
        """Take the values of a web address's query, and the name and password in front of its host, out."""
        if not uri.startswith(("https://", "http://")):
            return
        parts = urlsplit(uri)
        # Shorter ones, such as a year, are no proof of anything.
        values = (value for _, value in parse_qsl(parts.query) if len(value) >= MIN_PUBLIC_LENGTH)
        name, _, password = parts.netloc.rpartition("@")[0].partition(":")
        self.hold(parts.query, *values, unquote(password), name if len(name) >= MIN_PUBLIC_LENGTH else None)

    def scrub(self, text: str) -> str:
        """The text without them, and without the query and the user of any web address."""
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


def one_line(text: str, limit: int) -> str:
    """The first line of a text, without control characters, at most `limit` characters of it."""
    line = CONTROL_CHARACTERS.sub(" ", text.strip().partition("\n")[0]).strip(" ,.;")
    return line if len(line) <= limit else f"{line[:limit]}…"


def _forms(value: str) -> Iterator[str]:
    """A value as it may appear in a text."""
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
        # Wherever it begins in what is encoded, these characters hang on nothing else.
        whole = base64.b64encode(bytes(skipped) + content).decode().rstrip("=")
        inner = whole[FIRST_OWN_CHARACTER[skipped] : len(whole) - ((skipped + len(content)) % 3 > 0)]
        yield inner
        yield inner.translate({ord("+"): "-", ord("/"): "_"})


SCRUBBER: Final = Scrubber()
"""This process's."""
