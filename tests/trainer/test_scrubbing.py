# SPDX-License-Identifier: Apache-2.0
"""Text that leaves a process never contains a credential, in any form."""

import base64
import json
import logging
from urllib.parse import quote

import pytest

from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.runtime.logs import SCRUBBER, JsonFormatter, Scrubber, one_line
from finetune_trainer.runtime.termination import StageFailure

TOKEN = "hf_Kq+93/fjWm=s7 Lx2&Rv?ZpQ"
PASSWORD = 'pa:ss w"d'


def scrubbed(text: str, *values: str) -> str:
    scrubber = Scrubber()
    scrubber.add(*values)
    return scrubber.scrub(text)


@pytest.mark.parametrize(
    "form",
    [
        TOKEN,
        f"Bearer {TOKEN}",
        TOKEN.upper(),
        quote(TOKEN),
        quote(TOKEN, safe=""),
        quote(quote(TOKEN, safe=""), safe="").lower(),
        quote(TOKEN, safe="").replace("%20", "+"),
        base64.b64encode(TOKEN.encode()).decode(),
        base64.urlsafe_b64encode(TOKEN.encode()).decode(),
        base64.b64encode(f"me:{TOKEN}".encode()).decode(),
        base64.b64encode(f"you:{TOKEN}\n".encode()).decode(),
        base64.b64encode(f"them:{TOKEN}!!".encode()).decode(),
        TOKEN.encode().hex(),
        json.dumps({"header": TOKEN}),
        TOKEN[:20] + "…",
        "…" + TOKEN[-16:],
    ],
)
def test_a_token_is_taken_out_in_each_of_its_forms(form: str) -> None:
    text = scrubbed(f"403 no {form}", TOKEN)

    assert "[redacted]" in text
    assert text.startswith("403 no ")
    assert len(text.replace("[redacted]", "")) < len("403 no Bearer ") + 14, text


@pytest.mark.parametrize(
    "form", [PASSWORD, quote(PASSWORD, safe=""), json.dumps(PASSWORD)[1:-1], PASSWORD.encode().hex()]
)
def test_a_short_password_is_taken_out_as_a_whole(form: str) -> None:
    assert form not in scrubbed(f"no {form} here", PASSWORD)


def test_of_a_web_address_the_query_and_the_user_are_left_out() -> None:
    text = "403, url='https://me:t0ken@host:8443/rows.jsonl?sig=abc&x=1#top' (see http://other/a?b=c)"

    assert Scrubber().scrub(text) == "403, url='https://host:8443/rows.jsonl' (see http://other/a)"


def test_patterns_of_names_and_accounts_of_azure_stay() -> None:
    text = "s3://bucket/rows-?.csv and abfs://rows@team.dfs.core.windows.net/a.csv"

    assert Scrubber().scrub(text) == text


def test_the_values_of_a_signed_address_are_taken_out_wherever_they_are() -> None:
    scrubber = Scrubber()
    scrubber.add_uri("https://host/rows.jsonl?X-Signature=4f5e6d7c8b9a&year=2030")

    assert scrubber.scrub("4f5e6d7c8b9a has expired in 2030") == "[redacted] has expired in 2030"


def test_no_words_are_taken_out_that_are_no_credentials() -> None:
    text = "Secret credentials: key token is unknown; correct the Secret: docs/storage.md lists its keys"

    assert scrubbed(text, TOKEN, PASSWORD, "", "key") == text


def test_failures_and_logs_are_scrubbed() -> None:
    SCRUBBER.add(TOKEN)
    failure = StageFailure(FailureReason.INTERNAL, f"no {TOKEN}")
    error = ValueError(TOKEN)
    record = logging.LogRecord("a", 20, "a", 1, "no %s", (TOKEN,), (ValueError, error, None))

    line = JsonFormatter().format(record)

    assert (failure.message, str(failure)) == ("no [redacted]", "no [redacted]")
    assert json.loads(line)["message"] == "no [redacted]"
    assert "ValueError: [redacted]" in json.loads(line)["exception"]


def test_what_others_say_is_one_line_without_control_characters_and_bounded() -> None:
    assert one_line("  a\x1b[31mb\r\x00c\nsecond", 100) == "a [31mb  c"
    assert one_line("a" * 500, 300) == "a" * 300 + "…"
