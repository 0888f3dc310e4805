# SPDX-License-Identifier: Apache-2.0
"""Secrets, found by detect-secrets without its detectors for random strings and for IP addresses.

Its detectors run on the lines of a text directly. Each runs only if a line has one of its hints.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

from finetune_trainer.data.checks.detector import DetectedSpan, Expressions, any_of, loosen
from finetune_trainer.data.row_problems import Code


@dataclass(frozen=True, slots=True)
class Hints:
    """Necessary conditions of a finding: the text contains one of the words, if any, and the shape."""

    words: tuple[str, ...] = ()
    any_case: bool = False
    """Whether the words, which are in lower case, match any case."""
    shape: re.Pattern[str] | None = None
    has_value: bool = False
    """Whether the first group of a pattern, if any, is the secret; otherwise the whole match is."""

    def fit(self, text: str, folded: str) -> bool:
        """Whether the text meets the conditions; `folded` is the text in lower case."""
        searched = folded if self.any_case else text
        return (not self.words or any(word in searched for word in self.words)) and (
            self.shape is None or self.shape.search(text) is not None
        )

    @property
    def expressions(self) -> tuple[str, ...]:
        """Expressions that match every text that fits these hints."""
        words = (any_of(self.words, any_case=self.any_case),) if self.words else ()
        return (*words, loosen(self.shape)) if self.shape else words


ASSIGNED: Final = Hints(
    ("key", "pw", "pass", "token"), any_case=True, shape=re.compile(r"[\w\-]{24}"), has_value=True
)
DETECTORS: Final = {
    "ArtifactoryDetector": Hints(
        # With a digit, because words in capital letters are not passwords.
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
"""Detectors of detect-secrets by class name."""
HEADS: Final = {
    "JwtTokenDetector": re.compile(r"eyJ[A-Za-z0-9\-_=]++"),
    "NpmDetector": re.compile(r"//.*"),
}
"""Heads of patterns that would take quadratic time if tried at each position."""
KEYWORDS: Final = Hints(
    ("key", "pass", "pwd", "secret", "contrase"),
    any_case=True,
    shape=re.compile(r"""[:=>]\s*["'`]|["'`];"""),
)
"""Hints of KeywordDetector, which finds only one value per line, so its patterns are used directly."""
NOT_USED: Final = frozenset({"Base64HighEntropyString", "HexHighEntropyString", "IPPublicDetector"})
"""Detectors with too many false positives."""

ALL_HINTS: Final = tuple(dict.fromkeys((*DETECTORS.values(), KEYWORDS)))
EXACT_WORDS: Final = tuple(word for hints in ALL_HINTS if not hints.any_case for word in hints.words)
FOLDED_WORDS: Final = tuple(
    dict.fromkeys(word for hints in ALL_HINTS if hints.any_case for word in hints.words)
)
SHAPES: Final = tuple(hints.shape for hints in ALL_HINTS if hints.shape and not hints.words)

WORD_REST: Final = re.compile(r"[\w+/=\-]*")
"""Rest of a token: tokens have become longer since the patterns were written."""
KEY_HEAD: Final = re.compile(
    r"-*(?:BEGIN [A-Z0-9 ]{0,64}PRIVATE KEY(?: BLOCK)?-*|(?P<putty>PuTTY-User-Key-File-2))"
)
"""First line of a private key, by which it is found."""
KEY_ENDS: Final = {
    False: re.compile(r"-END [A-Z0-9 ]{0,64}PRIVATE KEY(?: BLOCK)?-*"),
    True: re.compile(r"Private-MAC: *[0-9a-f]+"),
}
"""Last lines of private keys; True: of PuTTY's keys."""
KEY_REST: Final = re.compile(r"(?:(?:\s|\\n)*[A-Za-z0-9+/=]{16,})*")
"""Rest of a key without a last line."""
MIN_KEY_CHARACTERS: Final = 64
"""Minimum length between first and last line; a text that only mentions keys has less."""


@dataclass(frozen=True, slots=True)
class SecretRule:
    """One pattern of a detector; `group` contains the secret."""

    hints: Hints
    kind: str
    pattern: re.Pattern[str]
    group: int = 0
    is_password: bool = False
    is_token: bool = False
    """Whether it is a JSON Web Token, whose form is then validated."""
    is_key: bool = False
    """Whether it matches the first line of a private key."""
    head: re.Pattern[str] | None = None
    """Matches where the pattern can begin, with all text in which a later start would be futile."""

    def spans(self, line: str) -> Iterator[tuple[int, int]]:
        """Spans of secrets in a line that fits the hints."""
        last = 0
        for match in self._matches(line):
            start, end = match.span(self.group)
            if start < last:
                # Part of the previous span.
                continue
            if self.group == 0:
                # Some patterns begin and end with a space or mark next to the secret.
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
        """The span in the whole text; None for a private key that has only a first line."""
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
            # A quoted sentence, or a call that returns the password.
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
    """Keys and tokens of well-known services, private keys, and quoted values with the name of a password."""

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
        """Rules of all detectors, loaded on first use."""
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.plugins import keyword

        by_type: dict[str, type[Any]] = get_mapping_from_secret_type_to_class()
        kinds = {kind.__name__: kind for kind in by_type.values()}
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
            # This pattern takes quadratic time on lines with many backticks.
            if pattern is not keyword.PRECEDED_BY_EQUAL_COMPARISON_SIGNS_QUOTES_REQUIRED_REGEX
        ]
        return rules


class _KeyEnds:
    """Ends of private keys in a text, found once for all first lines."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: dict[bool, list[tuple[int, int]]] = {}

    def after(self, start: int, *, is_putty: bool) -> int | None:
        """End of the first last line that begins at `start` or later; None if there is none."""
        if is_putty not in self._found:
            self._found[is_putty] = [match.span() for match in KEY_ENDS[is_putty].finditer(self._text)]
        ends = self._found[is_putty]
        index = bisect_left(ends, (start, 0))
        return ends[index][1] if index < len(ends) else None


def _fit(text: str) -> bool:
    folded = text.lower()
    return any(hints.fit(text, folded) for hints in ALL_HINTS)


def _rest(line: str, end: int) -> int:
    found = WORD_REST.match(line, end)
    return end if found is None else found.end()
