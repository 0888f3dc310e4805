# SPDX-License-Identifier: Apache-2.0
"""Personal data: e-mail addresses, payment cards, IBANs and phone numbers."""

import re
from collections.abc import Iterator
from typing import ClassVar, Final

from finetune_trainer.data.checks.detector import BEYOND_ASCII, DetectedSpan, Expressions, any_of
from finetune_trainer.data.row_problems import Code

# Each regular expression begins with a set of characters and looks back only then, so that the engine skips
# other text fast.

EMAIL_ADDRESS: Final = re.compile(
    r"(?<![\w.%+\-])[\w%+\-][\w.%+'\-]{0,63}@(?:[^\W_](?:[\w\-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}(?![\w@])"
)

CARD: Final = re.compile(
    # Not part of a longer number, a decimal fraction, or a word.
    r"[0-9](?<![\w.][0-9])(?<![0-9][ \-][0-9])"
    # As printed on cards, also with text after it (4-4-4-4 and the groups of American Express and Diners) …
    r"(?:[0-9]{3}(?P<mark>[ \-])(?:[0-9]{4}(?P=mark)[0-9]{4}(?P=mark)[0-9]{4}(?:(?P=mark)[0-9]{3})?"
    r"|[0-9]{6}(?P=mark)[0-9]{4,5})(?! [0-9]{4}(?![0-9])|-?[0-9])"
    # … or 13 to 19 digits with separators anywhere.
    r"|(?:[ \-]?[0-9]){12,18}(?![ \-]?[0-9]))(?!\w|\.[0-9])"
)
CARD_NUMBER: Final = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"  # Mastercard
    r"|3[47][0-9]{13}"  # American Express
    r"|3(?:0[0-5]|[689][0-9])[0-9]{11,16}"  # Diners Club
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12,15}"  # Discover
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"  # JCB
    r"|62[0-9]{14,17}"  # UnionPay
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{9,15}"  # Maestro
)
"""Prefixes and lengths of the card networks' numbers."""

IBAN_LIKE: Final = re.compile(
    r"[0-9]{2}(?<=[A-Za-z]{2}[0-9]{2})(?<![A-Za-z0-9][A-Za-z]{2}[0-9]{2})(?:[ \-]?[A-Za-z0-9]){11,30}"
)
"""An IBAN from its check digits on, possibly with words that follow."""
IBAN_CHARACTERS: Final = range(15, 35)
GROUP_END: Final = re.compile(r"[A-Za-z0-9](?![A-Za-z0-9])")

SEVEN_DIGITS: Final = re.compile(r"\d(?:[^\w\n]{0,4}\d){6}")
PLUS_SIGNS: Final = ("+", "＋")

# The same for RE2; each matches at least what its counterpart above matches.
CARD_DIGITS: Final = r"[0-9](?:[ \-]?[0-9]){12}"
IBAN_CHARACTERS_LIKE: Final = r"[A-Za-z]{2}[0-9]{2}(?:[ \-]?[A-Za-z0-9]){11}"
SEVEN_DIGITS_LIKE: Final = rf"[\d{BEYOND_ASCII}](?:[^\w\n]{{0,4}}[\d{BEYOND_ASCII}]){{6}}"


class PersonalData:
    """Shared advice for all kinds."""

    expected: ClassVar = "no personal data"
    fix: ClassVar = "remove it"


class EmailAddresses(PersonalData):
    """E-mail addresses in the usual form, with letters of any alphabet."""

    code: ClassVar = Code.EMAIL_ADDRESS
    name: ClassVar = "an e-mail address"
    setting: ClassVar = "checks.emailAddresses"
    placeholder: ClassVar = "[EMAIL]"
    expressions: ClassVar[Expressions] = (("@",),)

    def may_find(self, text: str) -> bool:
        return "@" in text

    def find(self, text: str) -> Iterator[DetectedSpan]:
        for match in EMAIL_ADDRESS.finditer(text):
            local, _, domain = match[0].partition("@")
            yield DetectedSpan(match.start(), match.end(), f"{local[0]}…@{domain}")


class PaymentCards(PersonalData):
    """Numbers with the form and length of a card network that pass the Luhn check."""

    code: ClassVar = Code.PAYMENT_CARD
    name: ClassVar = "a payment card's number"
    setting: ClassVar = "checks.paymentCards"
    placeholder: ClassVar = "[CARD]"
    expressions: ClassVar[Expressions] = ((CARD_DIGITS,),)

    def may_find(self, text: str) -> bool:
        return CARD.search(text) is not None

    def find(self, text: str) -> Iterator[DetectedSpan]:
        for match in CARD.finditer(text):
            number = re.sub("[ -]", "", match[0])
            if _is_card(number):
                yield DetectedSpan(match.start(), match.end(), f"{number[:4]}…{number[-4:]}")


class Ibans(PersonalData):
    """International bank account numbers with valid form, length and check digits."""

    code: ClassVar = Code.IBAN
    name: ClassVar = "an IBAN"
    setting: ClassVar = "checks.ibans"
    placeholder: ClassVar = "[IBAN]"
    expressions: ClassVar[Expressions] = ((IBAN_CHARACTERS_LIKE,),)

    def may_find(self, text: str) -> bool:
        return IBAN_LIKE.search(text) is not None

    def find(self, text: str) -> Iterator[DetectedSpan]:
        from stdnum import iban

        for match in IBAN_LIKE.finditer(text):
            start = match.start() - 2
            for end in _group_ends(text, start, match.end()):
                number = re.sub("[ -]", "", text[start:end])
                if len(number) in IBAN_CHARACTERS and iban.is_valid(number):
                    yield DetectedSpan(start, end, f"{number[:4]}…{number[-4:]}")
                    break


class PhoneNumbers(PersonalData):
    """Valid phone numbers with a country code, or numbers of `region`, a two-letter country code."""

    code: ClassVar = Code.PHONE_NUMBER
    name: ClassVar = "a phone number"
    setting: ClassVar = "checks.phoneNumbers"
    placeholder: ClassVar = "[PHONE]"

    def __init__(self, region: str | None) -> None:
        self._region = region

    @property
    def expressions(self) -> Expressions:
        if self._region is None:
            return ((any_of(PLUS_SIGNS), SEVEN_DIGITS_LIKE),)
        return ((SEVEN_DIGITS_LIKE,),)

    def may_find(self, text: str) -> bool:
        if self._region is None and not any(sign in text for sign in PLUS_SIGNS):
            return False
        return SEVEN_DIGITS.search(text) is not None

    def find(self, text: str) -> Iterator[DetectedSpan]:
        from phonenumbers import Leniency, PhoneNumberMatcher

        for match in PhoneNumberMatcher(text, self._region, leniency=Leniency.VALID):
            yield DetectedSpan(match.start, match.end, f"{match.raw_string[:3]}…{match.raw_string[-2:]}")


def _is_card(number: str) -> bool:
    from stdnum import ean, luhn

    if not CARD_NUMBER.fullmatch(number) or not luhn.is_valid(number):
        return False
    # Old Visa numbers have the form of bar codes (EAN-13) of German products.
    return not (len(number) == 13 and ean.is_valid(number))


def _group_ends(text: str, start: int, end: int) -> list[int]:
    """Ends of the groups of letters and digits, in reverse order."""
    return [found.end() for found in GROUP_END.finditer(text, start, end)][::-1]
