# SPDX-License-Identifier: Apache-2.0
"""Secrets and personal data in the texts of rows."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from finetune_trainer import canonical_json
from finetune_trainer.contract.dataset import Checks
from finetune_trainer.data.checks import Scanner
from finetune_trainer.data.checks.scanner import SEQUENCES
from finetune_trainer.data.checks.secrets import DETECTORS, NOT_USED, Secrets
from finetune_trainer.data.row_problems import Code, Issue
from finetune_trainer.rows import Message, Row

OFF = Checks(secrets="Off", payment_cards="Off", ibans="Off")
ALL: dict[str, Any] = {
    "secrets": "Redact",
    "email_addresses": "Redact",
    "payment_cards": "Redact",
    "ibans": "Redact",
    "phone_numbers": "Redact",
    "phone_region": "DE",
}
REDACT = Scanner(Checks(**ALL))
KEY_BODY = "MIIEowIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF0qMjJ0k1u7cQ7oI8QzB4l9mX2aV"
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0"
    ".dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
)

FOUND = [
    # E-mail addresses.
    ("write to jo.doe+shop@example.com.", "write to [EMAIL]."),
    ("<jo@mail.example.co.uk>", "<[EMAIL]>"),
    ("jürgen@müller.example", "[EMAIL]"),
    ("mailto:jo@example.com?subject=hi", "mailto:[EMAIL]?subject=hi"),
    # Payment cards.
    ("card 4111 1111 1111 1111 12/27", "card [CARD] 12/27"),
    ("5555-5555-5555-4444", "[CARD]"),
    ("378282246310005", "[CARD]"),
    ("3782 822463 10005!", "[CARD]!"),
    ("Visa:4222222222222", "Visa:[CARD]"),
    ("4111 11111111 1111", "[CARD]"),
    ("6011111111111117, 3530111333300000", "[CARD], [CARD]"),
    # IBANs.
    ("DE89 3704 0044 0532 0130 00 please", "[IBAN] please"),
    ("IBAN:GB82WEST12345698765432.", "IBAN:[IBAN]."),
    ("nl91abna0417164300", "[IBAN]"),
    # Phone numbers.
    ("call +44 20 8366 1177 now", "call [PHONE] now"),
    ("030 901820", "[PHONE]"),
    # Secrets.
    ("AKIAIOSFODNN7REALKEY", "[SECRET]"),
    ('aws_secret_key = "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"', 'aws_secret_key = "[SECRET]"'),
    ("AccountKey=" + "a1B2" * 22, "[SECRET]"),
    ("see https://jo:hunter2@db/a", "see https://jo:[SECRET]@db/a"),
    ("cloudant_password=" + "0123456789abcdef" * 4, "cloudant_password=[SECRET]"),
    ("MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ.ZnCjm1XVW7vRze4b7Cq4se7kKWs", "[SECRET]"),
    ("ghp_" + "aB3" * 12, "[SECRET]"),
    ("glpat-" + "aB3d" * 5 + " x", "[SECRET] x"),
    ("ibm_api_key: " + "aB3d" * 11, "ibm_api_key: [SECRET]"),
    ("cos_hmac_secret_access_key = " + "0a1b2c" * 8, "cos_hmac_secret_access_key = [SECRET]"),
    (f"token {JWT}, please", "token [SECRET], please"),
    ("0123456789abcdef" * 2 + "-us12", "[SECRET]"),
    ("//registry.example.com/:_authToken=npm_" + "aB3" * 12, "//registry.example.com/:_authToken=[SECRET]"),
    ("sk-proj-" + "aB3d" * 5 + "T3BlbkFJ" + "aB3d" * 5, "[SECRET]"),
    ("pypi-AgEIcHlwaS5vcmc" + "aB3d" * 18, "[SECRET]"),
    ("SG." + "aB" * 11 + "." + "a" * 43, "[SECRET]"),
    ("XOXB-1234-5678-abcdef", "[SECRET]"),
    ("sl_api_key='" + "0a1b" * 16 + "'", "sl_api_key='[SECRET]'"),
    ("sq0csp-" + "aB3" * 14 + "x", "[SECRET]"),
    ("sk_live_" + "aB3d" * 6 + "andmore", "[SECRET]"),
    ("110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0", "[SECRET]"),
    ("AC" + "0a1b" * 8, "[SECRET]"),
    ('"AKC' + "aB3d" * 4 + '" x', '"[SECRET]" x'),
    ("password: 'hunter2!x' or API_KEY=\"zq81\"", "password: '[SECRET]' or API_KEY=\"[SECRET]\""),
    (
        f"a\n-----BEGIN RSA PRIVATE KEY-----\n{KEY_BODY}\n{KEY_BODY}\n-----END RSA PRIVATE KEY-----\nb",
        "a\n[SECRET]\nb",
    ),
    (f"-----BEGIN OPENSSH PRIVATE KEY-----\n{KEY_BODY}\n\nthen", "[SECRET]\n\nthen"),
]

NOT_FOUND = [
    # E-mail addresses.
    "@example.com and jo@ and jo@localhost",
    "a @ b.com",
    # Payment cards.
    "4111 1111 1111 1112",
    "1234 5678 9012 3452",
    "41111111111111111111111",
    "1 4111 1111 1111 1111",
    "4111 1111 1111 1111 4111 1111",
    "0.4111111111111111",
    "id a4111111111111111",
    "EAN 4006381333931",
    # IBANs.
    "DE89 3704 0044 0532 0130 01",
    "XDE89370400440532013000",
    "EU27 countries have agreed on it",
    # Phone numbers.
    "order 4711, 2024-01-31, 12:30",
    # Secrets.
    "I forgot my password: what now?",
    'The secret: "be kind to all".',
    "password = get_password('x')",
    "password: '<password>' or '${PASSWORD}' or '*****'",
    "http://example.com:8080/a@b",
    "APARTMENTHAUS ASIA ACCA SKYSCRAPER",
    "https://user:{password}@example.com",
    "A file begins with -----BEGIN PRIVATE KEY----- and ends with -----END PRIVATE KEY-----.",
    "eyJhbGciOiJ.notatoken.atall",
    "the key is under the mat; a token of love; he passed",
    "192.0.2.7",
]


@pytest.mark.parametrize(("text", "redacted"), FOUND, ids=range(len(FOUND)))
def test_sensitive_text_is_redacted_and_nothing_else(text: str, redacted: str) -> None:
    row, issues = REDACT.scan(Row.pair(text, "ok"))

    assert row == Row.pair(redacted, "ok")
    assert len(issues) == redacted.count("[")


@pytest.mark.parametrize("text", NOT_FOUND)
def test_similar_text_is_not_redacted(text: str) -> None:
    row = Row.pair(text, "ok")

    assert REDACT.scan(row) == (row, ())


@pytest.mark.parametrize(("text", "redacted"), FOUND, ids=range(len(FOUND)))
def test_no_message_shows_a_finding_in_full(text: str, redacted: str) -> None:
    _, issues = REDACT.scan(Row.pair(text, "ok"))
    around = redacted.split("[", 1)[0]
    end = text.rfind(redacted.rsplit("]", 1)[1]) if redacted.rsplit("]", 1)[1] else len(text)

    assert all(text[len(around) : end] not in str(issue) for issue in issues)


@pytest.mark.parametrize(
    ("checks", "text", "message"),
    [
        (
            {"email_addresses": "Warn"},
            "Please write to jane@example.com",
            (
                "prompt has an e-mail address (j…@example.com) at character 17; expected no personal data; "
                "remove it, or set checks.emailAddresses: Redact"
            ),
        ),
        (
            {"payment_cards": "Warn"},
            "4111-1111-1111-1111",
            (
                "prompt has a payment card's number (4111…1111) at character 1; expected no personal data; "
                "remove it, or set checks.paymentCards: Redact"
            ),
        ),
        (
            {"ibans": "Warn"},
            "DE89 3704 0044 0532 0130 00",
            (
                "prompt has an IBAN (DE89…3000) at character 1; expected no personal data; "
                "remove it, or set checks.ibans: Redact"
            ),
        ),
        (
            {"phone_numbers": "Warn"},
            "+44 20 8366 1177",
            (
                "prompt has a phone number (+44…77) at character 1; expected no personal data; "
                "remove it, or set checks.phoneNumbers: Redact"
            ),
        ),
        (
            {"secrets": "Warn"},
            "AKIAIOSFODNN7REALKEY",
            (
                "prompt has a secret (AWS Access Key, AKIA…) at character 1; expected no secrets; "
                "revoke it and remove it, or set checks.secrets: Redact"
            ),
        ),
        (
            {"secrets": "Redact"},
            "password='x7'",
            (
                "prompt has a secret (Secret Keyword, …) at character 11; expected no secrets; "
                "[SECRET] replaces it"
            ),
        ),
    ],
)
def test_messages_name_the_finding_its_position_and_the_fix(
    checks: dict[str, Any], text: str, message: str
) -> None:
    _, (issue,) = Scanner(replace(OFF, **checks)).scan(Row.pair(text, "ok"))

    assert str(issue) == message


@pytest.mark.parametrize(
    ("finding", "severity", "text"),
    [
        ("Warn", "warning", "jo@example.com"),
        ("Fail", "error", "jo@example.com"),
        ("Redact", "warning", "[EMAIL]"),
    ],
)
def test_findings_are_handled_as_the_recipe_specifies(finding: Any, severity: str, text: str) -> None:
    row, (issue,) = Scanner(replace(OFF, email_addresses=finding)).scan(Row.pair("jo@example.com", "ok"))

    assert (issue.code, issue.severity, row.messages[0].content) == (Code.EMAIL_ADDRESS, severity, text)


def test_checks_that_are_off_find_nothing() -> None:
    row = Row.pair("\n".join(text for text, _ in FOUND), "ok")

    assert Scanner(OFF).scan(row) == (row, ())


def test_secrets_cards_and_ibans_cause_warnings_by_default() -> None:
    text = "AKIAIOSFODNN7REALKEY 4111111111111111 GB82WEST12345698765432 jo@example.com +44 20 8366 1177"
    row, issues = Scanner(Checks()).scan(Row.pair(text, "ok"))

    assert row.messages[0].content == text
    assert [issue.code for issue in issues] == [Code.SECRET, Code.PAYMENT_CARD, Code.IBAN]
    assert {issue.severity for issue in issues} == {"warning"}


def test_phone_numbers_without_a_country_code_are_found_only_with_a_region() -> None:
    row = Row.pair("030 901820 or +44 20 8366 1177", "ok")

    assert _codes(Scanner(replace(OFF, phone_numbers="Warn")).scan(row)[1]) == ["PhoneNumber"]
    assert len(Scanner(replace(OFF, phone_numbers="Warn", phone_region="DE")).scan(row)[1]) == 2


def test_the_stricter_of_overlapping_findings_counts() -> None:
    row = Row.pair("https://jo:hunter2@example.com/a", "ok")
    scanner = Scanner(replace(OFF, secrets="Redact", email_addresses="Warn"))

    redacted, issues = scanner.scan(row)

    assert redacted.messages[0].content == "https://jo:[SECRET]@example.com/a"
    assert _codes(issues) == ["Secret"]


def test_the_longest_of_overlapping_findings_counts() -> None:
    scanner = Scanner(replace(OFF, secrets="Redact", email_addresses="Redact"))
    row, issues = scanner.scan(Row.pair('password = "jo@example.com-and-more"', "ok"))

    assert row.messages[0].content == 'password = "[SECRET]"'
    assert _codes(issues) == ["Secret"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (Row.pair("a@b.io", "c@d.io"), ["prompt", "completion"]),
        (
            Row((Message("system", "x"), Message("user", "a@b.io"), Message("assistant", "c@d.io"))),
            ["messages[1].content", "messages[2].content"],
        ),
        (
            Row((Message("user", "a@b.io"), Message("assistant", "c@d.io")), "Preference", rejected="e@f.io"),
            ["prompt", "chosen", "rejected"],
        ),
        (
            Row(
                (Message("system", "x"), Message("user", "a@b.io"), Message("assistant", "c@d.io")),
                "KTO",
                label=True,
            ),
            ["prompt[1].content", "completion"],
        ),
    ],
)
def test_every_text_is_scanned_and_named_as_in_the_prepared_row(row: Row, columns: list[str]) -> None:
    redacted, issues = REDACT.scan(row)

    assert [issue.column for issue in issues] == columns
    assert redacted.output == "[EMAIL]"
    assert redacted.rejected in (None, "[EMAIL]")


def test_every_detector_of_the_library_is_used_or_excluded_explicitly() -> None:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    known: Any = get_mapping_from_secret_type_to_class()
    names = {kind.__name__ for kind in known.values()}

    assert names == DETECTORS.keys() | NOT_USED | {"KeywordDetector"}


@given(st.text() | st.from_regex(r"[0-9 \-]{10,40}") | st.from_regex(r"(pass|key|://|@|\+|:|'){1,12}"))
def test_any_text_can_be_scanned_and_changes_only_at_findings(text: str) -> None:
    assume(not SEQUENCES.search(text))  # they are reported, and stay
    row = Row.pair(text, "ok")
    redacted, issues = REDACT.scan(row)

    assert (redacted is row) == (not issues)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece", ["password `", "a", "1", "1 ", "://", "a.", "eyJ", "-", "key='", "AB12", "@a"]
)
def test_scan_time_is_linear_in_the_length_of_a_text(piece: str) -> None:
    text = piece * (100_000 // len(piece))

    Scanner(replace(Checks(), email_addresses="Warn")).scan(Row.pair(f"{text} @ AKIA key :// '", "ok"))


def test_every_finding_has_its_hints() -> None:
    secrets = Secrets()

    assert all(secrets.may_find(text) for text, redacted in FOUND if "[SECRET]" in redacted)


def _codes(issues: tuple[Issue, ...]) -> list[str]:
    return [issue.code for issue in issues]


def test_arguments_of_tool_calls_are_scanned_and_keep_their_types() -> None:
    calls = [{"function": {"name": "mail", "arguments": {"to": "jo@example.com", "lines": ["a", 'say "b"']}}}]
    row = Row(
        (
            Message("user", "write to them"),
            Message("assistant", "", tool_calls=canonical_json.encode_in_order(calls)),
        )
    )

    redacted, (issue,) = Scanner(Checks(email_addresses="Redact")).scan(row)

    assert issue.column == "messages[1].tool_calls[0].function.arguments.to"
    calls[0]["function"]["arguments"]["to"] = "[EMAIL]"  # type: ignore[index]
    assert redacted.messages[1].tool_calls == canonical_json.encode_in_order(calls)
    assert Scanner(Checks(payment_cards="Fail")).scan(row) == (row, ())
