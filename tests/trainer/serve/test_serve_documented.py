# SPDX-License-Identifier: Apache-2.0
"""The table of fields in docs/endpoints.md is what the built-in engine does with them."""

import re
from typing import Final

from finetune_trainer.serve.requests import (
    WITHOUT_EFFECT,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
)
from finetune_trainer.serve.vllm.request_body import ALLOWED
from tools.bootstrap.uv import ROOT

ROUTES: Final[dict[str, type[GenerationRequest]]] = {
    "chat": ChatCompletionRequest,
    "completions": CompletionRequest,
}
BEHAVIOURS: Final = ("answered", "refused", "ignored")


def documented() -> list[tuple[str, str, str]]:
    """Route, field and behaviour of each entry."""
    page = (ROOT / "docs" / "endpoints.md").read_text(encoding="utf-8")
    rows = page.partition("## Fields of requests")[2].partition("\n## ")[0]
    found = []
    for line in rows.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 4 or not cells[0].startswith("`"):
            continue
        behaviour = next(each for each in BEHAVIOURS if cells[2].startswith(each))
        routes = list(ROUTES) if cells[1] == "both" else [cells[1]]
        found += [(route, field, behaviour) for route in routes for field in re.findall(r"`(\w+)`", cells[0])]
    return found


def test_the_table_of_fields_is_that_of_the_code() -> None:
    code = [
        *((route, field, "answered") for route, request in ROUTES.items() for field in request.model_fields),
        *(
            (route, field, "refused")
            for route, request in ROUTES.items()
            for field in request.UNSUPPORTED_FIELDS
        ),
        *((route, field, "ignored") for route in ROUTES for field in WITHOUT_EFFECT),
    ]
    # The page names some of vLLM's own fields, which the built-in engine does not have.
    known = {(route, field) for route, field, _ in code}
    vllm = [
        (route, field, "refused")
        for route, path in (("chat", "/v1/chat/completions"), ("completions", "/v1/completions"))
        for field in ALLOWED[path]
        if (route, field) not in known
    ]
    written = documented()
    assert sorted(set(written) - set(vllm)) == sorted(code)
    assert len(set(written)) == len(written)
