"""Secrets: what the detectors of detect-secrets know, but for those that go by randomness or are no secrets.

Its detectors are used on the lines of a text directly. Each is asked only where a text has one of its hints.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

from finetune_trainer.data.checks.base import DetectedSpan
from finetune_trainer.data.checks.prefilter import Expressions, any_of, loosened
from finetune_trainer.data.rowproblems import Code


@dataclass(frozen=True, slots=True)
class Hints:
    """What every text has in which a detector finds something: one of the words, if any, and the shape."""

    words: tuple[str, ...] = ()
    any_case: bool = False
    """The words are in small letters, and stand for any case."""
    shape: re.Pattern[str] | None = None
    has_value: bool = False
    """Whether the first group, if there is one, is the secret; otherwise it is what matches."""

    def fit(self, text: str, folded: str) -> bool:
        """`folded` is the text in small letters."""
        searched = folded if self.any_case else text
        return (not self.words or any(word in searched for word in self.words)) and (
            self.shape is None or self.shape.search(text) is not None
        )

    @property
    def expressions(self) -> tuple[str, ...]:
        """What every text fits that fits these hints."""
        words = (any_of(self.words, any_case=self.any_case),) if self.words else ()
        return (*words, loosened(self.shape)) if self.shape else words


ASSIGNED: Final = Hints(
    ("key", "pw", "pass", "token"), any_case=True, shape=re.compile(r"[\w\-]{24}"), has_value=True
)
DETECTORS: Final = {
    "ArtifactoryDetector": Hints(
        # A digit, for words in capital letters are no passwords.
        ("AKC", "AP"),
        shape=re.compile("(?:AKC|AP[0-9A-F])(?=[a-zA-Z]*[0-9])[a-zA-Z0-9]{8}"),
    ),
    "AWSKeyDetector": Hints(
        ("a3t", "abia", "acca", "akia", "asia", "aws"),
        any_case=True,
        shape=re.compile("[0-9A-Za-z/+]{20}"),
        has_value=True,
    ),
    "AzureStorageKeyDetector": Hints(("AccountKey=",)),
    "BasicAuthDetector": Hints(("://",), has_value=True),
    "CloudantDetector": ASSIGNED,
    "DiscordBotTokenDetector": Hints(shape=re.compile(r"\.[\w\-]{6}\.[\w\-]{27}")),
    "GitHubTokenDetector": Hints(("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    "GitLabTokenDetector": Hints(
        (
            *("glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "GR1348941"),
            *("glcbt-", "glimt-", "glptt-", "glagent-", "gloas-"),
        )
    ),
    "IbmCloudIamDetector": ASSIGNED,
    "IbmCosHmacDetector": ASSIGNED,
    "JwtTokenDetector": Hints(("eyJ",)),
    "MailchimpDetector": Hints(("-us",), shape=re.compile("-us[0-9]")),
    "NpmDetector": Hints((":_authToken=",), has_value=True),
    "OpenAIDetector": Hints(("T3BlbkFJ",)),
    "PrivateKeyDetector": Hints(("PRIVATE KEY", "PuTTY-User-Key-File")),
    "PypiTokenDetector": Hints(("pypi-Ag",)),
    "SendGridDetector": Hints(("SG.",)),
    "SlackDetector": Hints(("xox", "hooks.slack.com"), any_case=True),
    "SoftlayerDetector": ASSIGNED,
    "SquareOAuthDetector": Hints(("sq0csp-",)),
    "StripeDetector": Hints(("k_live_",)),
    "TelegramBotTokenDetector": Hints(shape=re.compile(r":[\w\-]{35}")),
    "TwilioKeyDetector": Hints(("AC", "SK"), shape=re.compile("(?:AC|SK)[a-z0-9]{32}")),
}
"""Classes of detect-secrets."""
HEADS: Final = {
    "JwtTokenDetector": re.compile(r"eyJ[A-Za-z0-9\-_=]++"),
    "NpmDetector": re.compile(r"//.*"),
}
"""Of patterns that take quadratic time when each place is tried."""
KEYWORDS: Final = Hints(
    ("key", "pass", "pwd", "secret", "contrase"),
    any_case=True,
    shape=re.compile(r"""[:=>]\s*["'`]|["'`];"""),
)
"""Of its KeywordDetector, which gives one value a line, and is used by its patterns instead."""
NOT_USED: Final = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector"})
"""They find too much that is no secret."""

ALL_HINTS: Final = tuple(dict.fromkeys((*DETECTORS.values(), KEYWORDS)))
EXACT_WORDS: Final = tuple(word for hints in ALL_HINTS if not hints.any_case for word in hints.words)
FOLDED_WORDS: Final = tuple(
    dict.fromkeys(word for hints in ALL_HINTS if hints.any_case for word in hints.words)
)
SHAPES: Final = tuple(hints.shape for hints in ALL_HINTS if hints.shape and not hints.words)

WORD_REST: Final = re.compile(r"[\w+/=\-]*")
"""Tokens have grown longer since the patterns were written."""
KEY_HEAD: Final = re.compile(
    r"-*(?:BEGIN [A-Z0-9 ]{0,64}PRIVATE KEY(?: BLOCK)?-*|(?P<putty>PuTTY-User-Key-File-2))"
)
"""A key's first line, by which it is found."""
KEY_ENDS: Final = {
    False: re.compile(r"-END [A-Z0-9 ]{0,64}PRIVATE KEY(?: BLOCK)?-*"),
    True: re.compile(r"Private-MAC: *[0-9a-f]+"),
}
"""Of other keys, and of PuTTY's."""
KEY_REST: Final = re.compile(r"(?:(?:\s|\\n)*[A-Za-z0-9+/=]{16,})*")
"""Of a key whose end is missing."""
MIN_KEY_CHARACTERS: Final = 64
"""A text that only speaks of keys has fewer between the first line and the last."""


@dataclass(frozen=True, slots=True)
class SecretRule:
    """One pattern of a detector; `group` is the secret."""

    hints: Hints
    kind: str
    pattern: re.Pattern[str]
    group: int = 0
    is_password: bool = False
    is_token: bool = False
    """A JSON Web Token, which must also be one in form."""
    is_key: bool = False
    """The first line of a private key."""
    head: re.Pattern[str] | None = None
    """Where the pattern can begin, each time with all that it would read in vain from a later place in it."""

    def spans(self, line: str) -> Iterator[tuple[int, int]]:
        """Where it is, in a line that fits the hints."""
        last = 0
        for match in self._matches(line):
            start, end = match.span(self.group)
            if start < last:
                # In what is told already.
                continue
            if self.group == 0:
                # Some patterns begin and end with the space or the mark beside the secret.
                start += len(match[0]) - len(match[0].lstrip(' \t=:"'))
                end = _rest(line, start + len(match[0].strip(' \t=:"')))
            if self._is_secret(line[start:end], line):
                last = end
                yield start, end

    def _matches(self, line: str) -> Iterator[re.Match[str]]:
        if self.head is None:
            yield from self.pattern.finditer(line)
            return
        for head in self.head.finditer(line):
            if match := self.pattern.match(line, head.start()):
                yield match

    def found(self, text: str, start: int, end: int, key_ends: "_KeyEnds") -> DetectedSpan | None:
        """What is there in the whole text; None where a private key has a first line only."""
        if not self.is_key:
            return DetectedSpan(
                start, end, f"{self.kind}, {text[start : start + min(4, (end - start) // 4)]}…"
            )
        while start and text[start - 1] == "-":
            start -= 1
        head = KEY_HEAD.match(text, start)
        if head is None:
            return None
        is_putty = head["putty"] is not None
        end = key_ends.after(head.end(), is_putty=is_putty) or head.end()
        if end == head.end() and not is_putty and (rest := KEY_REST.match(text, end)):
            end = rest.end()
        return DetectedSpan(start, end, self.kind) if end - head.end() >= MIN_KEY_CHARACTERS else None

    def _is_secret(self, value: str, line: str) -> bool:
        from detect_secrets.filters import heuristic
        from detect_secrets.plugins.jwt import JwtTokenDetector

        if self.is_token:
            return JwtTokenDetector.is_formally_valid(value)
        if self.group == 0:
            return True
        if self.is_password and (
            # A sentence in quotes, or the call of what gives the password.
            any(map(str.isspace, value))
            or heuristic.is_sequential_string(value)
            or heuristic.is_indirect_reference(line)
        ):
            return False
        return not (
            heuristic.is_templated_secret(value)
            or heuristic.is_prefixed_with_dollar_sign(value)
            or heuristic.is_not_alphanumeric_string(value)
        )


class Secrets:
    """Keys and tokens of well-known services, private keys, and quoted values of what is named a password."""

    code: ClassVar = Code.SECRET
    name: ClassVar = "a secret"
    expected: ClassVar = "no secrets"
    fix: ClassVar = "revoke it and remove it"
    setting: ClassVar = "checks.secrets"
    placeholder: ClassVar = "[SECRET]"
    expressions: ClassVar[Expressions] = tuple(hints.expressions for hints in ALL_HINTS)

    def may_find(self, text: str) -> bool:
        for word in EXACT_WORDS:
            if word in text:
                return _fit(text)
        folded = text.lower()
        for word in FOLDED_WORDS:
            if word in folded:
                return _fit(text)
        return any(shape.search(text) for shape in SHAPES)

    def find(self, text: str) -> Iterator[DetectedSpan]:
        offset, key_ends = 0, _KeyEnds(text)
        for line in text.split("\n"):
            folded = line.lower()
            for rule in self._rules:
                if not rule.hints.fit(line, folded):
                    continue
                for start, end in rule.spans(line):
                    found = rule.found(text, offset + start, offset + end, key_ends)
                    if found is not None:
                        yield found
            offset += len(line) + 1

    @cached_property
    def _rules(self) -> list[SecretRule]:
        """Loaded with the first text that may have something."""
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.plugins import keyword

        found: dict[str, type[Any]] = get_mapping_from_secret_type_to_class()
        kinds = {kind.__name__: kind for kind in found.values()}
        rules = [
            SecretRule(
                hints,
                kinds[name].secret_type,
                pattern,
                group=1 if hints.has_value and pattern.groups else 0,
                is_token=name == "JwtTokenDetector",
                is_key=name == "PrivateKeyDetector",
                head=HEADS.get(name),
            )
            for name, hints in DETECTORS.items()
            for pattern in kinds[name].denylist
        ]
        rules += [
            SecretRule(KEYWORDS, keyword.KeywordDetector.secret_type, pattern, group, is_password=True)
            for pattern, group in keyword.QUOTES_REQUIRED_DENYLIST_REGEX_TO_GROUP.items()
            # It takes quadratic time on lines with many backticks.
            if pattern is not keyword.PRECEDED_BY_EQUAL_COMPARISON_SIGNS_QUOTES_REQUIRED_REGEX
        ]
        return rules


class _KeyEnds:
    """Where private keys end in a text, found once for all of their first lines."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: dict[bool, list[tuple[int, int]]] = {}

    def after(self, start: int, *, is_putty: bool) -> int | None:
        """The end of the first one that begins at an index or later."""
        if is_putty not in self._found:
            self._found[is_putty] = [match.span() for match in KEY_ENDS[is_putty].finditer(self._text)]
        ends = self._found[is_putty]
        place = bisect_left(ends, (start, 0))
        return ends[place][1] if place < len(ends) else None


def _fit(text: str) -> bool:
    folded = text.lower()
    return any(hints.fit(text, folded) for hints in ALL_HINTS)


def _rest(line: str, end: int) -> int:
    found = WORD_REST.match(line, end)
    return end if found is None else found.end()
