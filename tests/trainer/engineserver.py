# SPDX-License-Identifier: Apache-2.0
"""A server with the completions API of an engine, which generates as the trainer does.

Run as `python -m tests.trainer.engineserver PORT BASE [NAME=ADAPTER …]`.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from finetune_trainer.contract.evaluation import GenerationSettings
from finetune_trainer.evaluate.measured_model import AnswerGenerator, AnswerRequest
from finetune_trainer.model.loading import load_adapter, load_base
from finetune_trainer.tokens.chat_template import load_tokenizer

VERSION: Final = "0.1.test"


def command(port: int, base: Path | str, adapters: Sequence[str] = ()) -> tuple[str, ...]:
    """The command that starts the server."""
    return (sys.executable, "-m", "tests.trainer.engineserver", str(port), str(base), *adapters)


class _Engine:
    def __init__(self, base: Path, adapters: dict[str, Path]) -> None:
        self._tokenizer = load_tokenizer(base)
        self._model: Any = load_base(base, None, torch.device("cpu"))
        for name, folder in adapters.items():
            self._model = load_adapter(self._model, folder, name=name)
        self._adapters = adapters
        self._model.eval()

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        assert body["return_token_ids"], "the client reads token ids"
        settings = GenerationSettings(temperature=body["temperature"], top_p=body["top_p"])
        stops = frozenset(body["stop_token_ids"])
        generator = AnswerGenerator(
            self._model, self._tokenizer, settings, stop_ids=stops, on_token=lambda: None
        )
        with self._activated(body["model"]):
            (row,) = generator._answered([AnswerRequest(1, body["prompt"], body["max_tokens"])])
        ids = [*row.tokens, min(stops)] if row.finish_reason == "stop" else row.tokens
        return JSONResponse({"choices": [{"token_ids": ids, "finish_reason": row.finish_reason}]})

    def _activated(self, name: str) -> Any:
        if name in self._adapters:
            self._model.set_adapter(name)
            return nullcontext()
        return self._model.disable_adapter() if self._adapters else nullcontext()


async def _healthy(_: Request) -> Response:
    return Response()


async def _version(_: Request) -> Response:
    return JSONResponse({"version": VERSION})


def main(port: str, base: str, *adapters: str) -> None:
    """Serve until the process ends."""
    folders = {name: Path(folder) for name, _, folder in (each.partition("=") for each in adapters)}
    engine = _Engine(Path(base), folders)
    app = Starlette(
        routes=[
            Route("/health", _healthy),
            Route("/version", _version),
            Route("/v1/completions", engine.complete, methods=["POST"]),
        ]
    )
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
