# SPDX-License-Identifier: Apache-2.0
"""The self-test in vLLM's process, with predictions in the form of vLLM's API."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from finetune_trainer.contract.serving import ServeConfig, ServedModel
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.model.probe_record import PROBE_FILE, Computation, ProbeRecord, TopTokens
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.serve.served_models import probe_folder
from finetune_trainer.serve.vllm.lifetime import TEXTS, UNKNOWN, Lifetime, check_models, read_computation
from tests.trainer.serve.endpoint import serve_config

EXACT: Final = Computation("VLLM", "cpu", "float32", quantized=False)
ROUNDED: Final = Computation("VLLM", "cpu", "bfloat16", quantized=False)
BASE: Final = {5: -0.5, 6: -1.5, 7: -2.0}
TUNED: Final = {5: -0.25, 6: -2.5, 9: -3.0}
RECORD: Final = ProbeRecord(
    engine="Transformers",
    engine_version="5.24",
    device="cpu",
    dtype="float32",
    quantized=False,
    prompts=((1, 2, 3),),
    tuned=(TopTokens(ids=(5, 6), log_probabilities=(-0.25, -2.5)),),
)


class Engine:
    """A server that predicts the same after every prompt, by model, unless it is told otherwise."""

    def __init__(self, **predictions: Mapping[int, float]) -> None:
        self.predictions = predictions
        self.after: dict[str, Mapping[int, float]] = {}
        """Predictions of the model `router` after some texts or token ids, as JSON."""
        self.max_tokens = 100
        self.status = 200
        chat = Route("/v1/chat/completions", self._chat, methods=["POST"])
        completion = Route("/v1/completions", self._completion, methods=["POST"])
        self.app = Starlette(routes=[chat, completion])

    async def _chat(self, request: Request) -> JSONResponse:
        top = [{"token": token, "logprob": value} for token, value in (await self._top(request)).items()]
        return self._answer({"content": [{"top_logprobs": top}]})

    async def _completion(self, request: Request) -> JSONResponse:
        if len((await request.json())["prompt"]) >= self.max_tokens:
            return JSONResponse({"error": "the prompt is too long"}, 400)
        return self._answer({"top_logprobs": [await self._top(request)]})

    async def _top(self, request: Request) -> dict[str, float]:
        body = await request.json()
        assert (body["max_tokens"], body["return_tokens_as_token_ids"]) == (1, True)
        prompt = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        default = self.predictions[body["model"]]
        found = self.after.get(json.dumps(prompt), default) if body["model"] == "router" else default
        return {f"token_id:{token}": value for token, value in found.items()}

    def _answer(self, logprobs: Any) -> JSONResponse:
        body: Any = {"choices": [{"logprobs": logprobs}]} if self.status == 200 else {"error": "no template"}
        return JSONResponse(body, self.status)


def router(models: Path, record: ProbeRecord | None = None, **settings: Any) -> ServeConfig:
    """The config of one adapter, with its record."""
    if record is not None:
        folder = probe_folder(models, "router")
        folder.mkdir(parents=True)
        (folder / PROBE_FILE).write_text(record.model_dump_json())
    served = ServedModel(name="router", folder="router", **settings)
    return serve_config(models, base_folder="base", models=(served,))


def check(config: ServeConfig, engine: Engine, computation: Computation = EXACT) -> None:
    asyncio.run(check_models(engine.app, engine.app, config, computation))


@pytest.mark.parametrize("record", [None, RECORD], ids=["no record", "record"])
def test_an_adapter_that_predicts_what_was_recorded_is_served(
    tmp_path: Path, record: ProbeRecord | None
) -> None:
    check(router(tmp_path, record), Engine(base=BASE, router=TUNED))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_without_effect_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(StageFailure, match="'router': its adapter changes nothing") as caught:
        check(
            router(tmp_path),
            Engine(base=BASE, router=BASE),
            Computation("VLLM", "cuda", dtype, quantized=False),
        )
    assert caught.value.reason == FailureReason.ARTIFACT_CORRUPT
    assert caught.value.exit_code == ExitCode.BAD_CONFIG


@pytest.mark.parametrize("prompt", [list(RECORD.prompts[0]), TEXTS[-1]], ids=["recorded", "text"])
def test_a_weak_adapter_is_served_if_it_changes_any_prediction(tmp_path: Path, prompt: object) -> None:
    engine = Engine(base=BASE, router=BASE)
    engine.after = {json.dumps(prompt): TUNED}
    check(router(tmp_path, RECORD), engine, ROUNDED)


def test_prompts_of_a_record_that_exceed_the_context_are_not_compared(tmp_path: Path) -> None:
    long = RECORD.model_copy(update={"prompts": (*RECORD.prompts, (1,) * 8), "tuned": RECORD.tuned * 2})
    config, engine = router(tmp_path, long), Engine(base=BASE, router=TUNED)
    engine.max_tokens = 8
    with pytest.raises(StageFailure, match="the prompt is too long"):
        check(config, engine)
    engine.app.state.vllm_config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=8))
    check(config, engine)
    engine.after = {json.dumps(list(RECORD.prompts[0])): {**TUNED, 6: -4.5}}
    with pytest.raises(StageFailure, match="do not predict what was recorded"):
        check(config, engine)


def test_a_record_without_a_prompt_that_fits_is_not_compared(tmp_path: Path) -> None:
    engine = Engine(base=BASE, router={**TUNED, 6: -4.5})
    engine.app.state.vllm_config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=3))
    check(router(tmp_path, RECORD), engine)


def test_rounding_is_no_effect_in_float32_and_may_be_one_in_bfloat16(tmp_path: Path) -> None:
    rounded = Engine(base=BASE, router={token: value + 1e-6 for token, value in BASE.items()})
    with pytest.raises(StageFailure, match="changes nothing"):
        check(router(tmp_path), rounded)
    check(router(tmp_path), rounded, ROUNDED)


@pytest.mark.parametrize(
    ("tuned", "difference"),
    [({**TUNED, 6: -2.502}, "0.002"), ({5: -0.25, 7: -3.5, 9: -4.0}, "1.5")],
    ids=["another value", "another token"],
)
def test_an_adapter_that_differs_from_its_record_is_refused_with_the_figure(
    tmp_path: Path, tuned: Mapping[int, float], difference: str
) -> None:
    with pytest.raises(StageFailure, match=f"differ by up to {difference} nats") as caught:
        check(router(tmp_path, RECORD), Engine(base=BASE, router=tuned))
    assert caught.value.reason == FailureReason.ARTIFACT_CORRUPT
    assert "float32 on cpu by Transformers 5.24; now float32 on cpu by VLLM" in caught.value.message


@pytest.mark.parametrize(
    ("record", "computation"),
    [
        ({}, Computation("VLLM", "cuda", "bfloat16", quantized=False)),
        ({}, Computation("VLLM", "cpu", "float32", quantized=True)),
        ({}, Computation("VLLM", UNKNOWN, UNKNOWN, quantized=False)),
        ({"dtype": "bfloat16"}, EXACT),
        ({"quantized": True}, EXACT),
    ],
)
def test_without_a_measured_tolerance_a_difference_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, record: Any, computation: Computation
) -> None:
    engine = Engine(base=BASE, router={**TUNED, 6: -4.5})
    check(router(tmp_path, RECORD.model_copy(update=record)), engine, computation)
    assert "differ by up to 2 nats" in caplog.text
    assert "It is served" in caplog.text


def test_a_record_of_another_format_is_not_compared(tmp_path: Path) -> None:
    config = router(tmp_path, RECORD)
    (probe_folder(tmp_path, "router") / PROBE_FILE).write_text(json.dumps({"format": 2}))
    check(config, Engine(base=BASE, router=TUNED))


def test_a_whole_model_is_compared_with_its_record_only(tmp_path: Path) -> None:
    config = router(tmp_path, RECORD, type="Full")
    check(config, Engine(router=TUNED))
    with pytest.raises(StageFailure, match="do not predict what was recorded"):
        check(config, Engine(router=BASE))


@pytest.mark.parametrize(
    ("status", "reason", "code"),
    [
        (400, FailureReason.BASE_MODEL_INVALID, ExitCode.BAD_CONFIG),
        (500, FailureReason.INTERNAL, ExitCode.INTERNAL),
    ],
)
def test_an_error_of_vllm_is_in_the_message(
    tmp_path: Path, status: int, reason: FailureReason, code: ExitCode
) -> None:
    engine = Engine(base=BASE, router=TUNED)
    engine.status = status
    with pytest.raises(StageFailure, match="'base' could not generate a first token") as caught:
        check(router(tmp_path), engine)
    assert "no template" in caught.value.message
    assert (caught.value.reason, caught.value.exit_code) == (reason, code)


@pytest.mark.parametrize(("tuned", "ready"), [(TUNED, True), (BASE, False)])
def test_a_server_is_ready_after_its_self_test(
    tmp_path: Path, tuned: Mapping[int, float], ready: bool
) -> None:
    failures: list[StageFailure] = []
    registry = CollectorRegistry()
    lifetime = Lifetime(router(tmp_path), failures.append, registry)
    engine = Engine(base=BASE, router=tuned)
    engine.app.state.vllm_config = None

    asyncio.run(lifetime.test(engine.app, engine.app))

    assert (lifetime.ready, len(failures)) == (ready, not ready)
    served = 'finetune_serve_model_info{digest="",model="router",type="Adapter"} 1.0'
    assert (served in generate_latest(registry).decode()) == ready


def test_a_server_whose_config_is_elsewhere_has_an_unknown_computation() -> None:
    assert read_computation(Starlette()) == Computation("VLLM", UNKNOWN, UNKNOWN, quantized=False)
