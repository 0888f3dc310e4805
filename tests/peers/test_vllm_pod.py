# SPDX-License-Identifier: Apache-2.0
"""A serving pod of vLLM: fetched models, the middleware in vLLM's process, self-test, drain."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

import httpx
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_operator.api.checkpoint import AdapterRecord
from finetune_operator.api.serving import Serving
from finetune_operator.manifests.engines.engine_inputs import DEADLINE_MARGIN_SECONDS, ServingConfig
from finetune_operator.manifests.engines.vllm import vllm_command
from finetune_operator.manifests.weights import WeightsReference
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.environment import (
    CONFIG_ENV,
    MODELS_MOUNT,
    VLLM_PYTHONPATH,
)
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import CheckpointResult
from finetune_trainer.contract.serving import FetchConfig, FetchItem, ServedModel
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.model.probe_record import PROBE_FILE, ProbeRecord
from finetune_trainer.serve.fetch import run as fetch
from finetune_trainer.serve.served_models import probe_folder
from tests.peers.test_vllm import UNTIL_KNOWN
from tests.peers.unreachable import UNREACHABLE
from tests.peers.vllmserver import VLLMServer
from tests.trainer.basemodels import with_gemma_tokens
from tests.trainer.serve.endpoint import serve_config, wait_until
from tests.trainer.serve.test_serve_apikeys import OTHER, RIGHT, mount
from tests.trainer.serve.test_vllm_middleware import chain, of_content
from tests.trainer.workbench import OWNER, ROWS, Workbench
from tools.cluster.layout import free_port
from tools.peers import vllm

pytestmark = pytest.mark.skipif(not vllm.is_installed(), reason="make test-peers installs vLLM for CPUs")

ROUTER: Final = WeightsReference(
    "pvc://artifacts", "sha256:" + "0" * 64, "Adapter", adapter=AdapterRecord(r=8)
)
QUESTION: Final = ROWS[0].messages[0].content


def config_of_router(bench: Workbench, base: Digest, *, dora: bool = False) -> TrainConfig:
    """Training with which the tiny model learns its rows by heart."""
    method = Method(lora=LoRA(r=8, alpha=16, dropout=0, dora=dora))
    return bench.train_config(base, bench.dataset(ROWS), method=method, **UNTIL_KNOWN)


class FetchedPod:
    """The folder of a pod with fetched models and API keys."""

    def __init__(self, folder: Path, *, is_whole: bool = False) -> None:
        self.folder = folder
        self.is_whole = is_whole
        """Whether `router` is a whole model instead of an adapter."""
        self.models = folder / "models"
        self.keys = folder / "keys"

    @classmethod
    def with_router(cls, folder: Path) -> Self:
        """A base model, and the adapter `router` with its record."""
        bench = Workbench(folder)
        base = bench.model(with_gemma_tokens(folder / "source"))
        checkpoint = bench.train(config_of_router(bench, base)).checkpoints[-1]
        assert checkpoint.probe is not None
        return cls.fetched(bench, base, checkpoint)

    @classmethod
    def fetched(cls, bench: Workbench, base: Digest, checkpoint: CheckpointResult) -> Self:
        """A base model and a Checkpoint, with what the init container makes of them."""
        pod = cls(bench.root)
        mount(pod.keys, shop=RIGHT)
        adapter = ArtifactRef(kind="checkpoints", digest=checkpoint.digest)
        fetch(
            FetchConfig(
                owner=OWNER,
                store=bench.store_config,
                items=(
                    FetchItem(artifact=ArtifactRef(kind="models", digest=base), folder="base"),
                    FetchItem(artifact=adapter, folder="router", probe=checkpoint.probe),
                ),
                destination=str(pod.models),
                engine="VLLM",
                max_lora_rank=8,
            )
        )
        return pod

    def copy(self, folder: Path) -> "FetchedPod":
        """A pod with the same models."""
        shutil.copytree(self.models, folder / "models")
        return FetchedPod(folder)

    def here(self, path: str) -> Path:
        """A path of the pod."""
        return self.models / Path(path).relative_to(MODELS_MOUNT)

    def server(self, *, key: str | None = None) -> "PodServer":
        return PodServer(self, key)


class PodServer(VLLMServer):
    """vLLM as the operator starts it."""

    def __init__(self, pod: FetchedPod, key: str | None) -> None:
        self.metrics_port = free_port()
        weights = replace(ROUTER, type="Full", adapter=None) if pod.is_whole else ROUTER
        config = serve_config(
            pod.models,
            base_folder="router" if pod.is_whole else "base",
            models=(ServedModel(name="router", folder="router", type=weights.type),),
            metrics_port=self.metrics_port,
            drain_seconds=1,
            api_keys_path=None if key is None else str(pod.keys),
        )
        command = vllm_command(
            ServingConfig(
                serve=config,
                settings=Serving(),
                weights=(weights,),
                accelerators=0,
                finish_seconds=60 + DEADLINE_MARGIN_SECONDS,
            )
        )
        assert command[:2] == ["vllm", "serve"]
        arguments = [argument.replace(MODELS_MOUNT, str(pod.models)) for argument in command[2:]]
        logs = pod.folder / f"logs-{self.metrics_port}"
        logs.mkdir()
        environment = {CONFIG_ENV: config.to_json(), "PYTHONPATH": str(pod.here(VLLM_PYTHONPATH))}
        super().__init__(arguments, logs, environment)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or "none", max_retries=0)

    def metrics(self) -> str:
        """What a scrape returns."""
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> FetchedPod:
    return FetchedPod.with_router(tmp_path_factory.mktemp("pod"))


@pytest.fixture(scope="module")
def server(pod: FetchedPod) -> Iterator[PodServer]:
    with pod.server(key=RIGHT) as running:
        yield running


def test_a_ready_server_answers_as_trained(server: PodServer) -> None:
    (choice,) = server.chat("router", QUESTION).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", ROWS[0].output)
    assert {model.id for model in server.openai.models.list()} == {"base", "router"}


def test_its_predictions_agree_with_the_record_of_the_trainer(server: PodServer) -> None:
    """The figure is in docs/endpoints.md."""
    lines = server.whole_log.splitlines()
    found = [line for line in lines if "differs from its probe by up to" in line]
    assert len(found) == 1
    print(json.loads(found[0])["message"])


@pytest.mark.parametrize("path", UNREACHABLE)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_other_route_of_vllm_reaches_clients(server: PodServer, path: str, method: str) -> None:
    answer = server.http.request(method, path, headers={"Authorization": f"Bearer {RIGHT}"}, json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/v1/completions", "/version"])
def test_a_key_is_required(server: PodServer, path: str) -> None:
    for headers in ({}, {"Authorization": f"Bearer {OTHER}"}):
        answer = server.http.post(path, json={}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


def test_keys_are_rotated_without_a_restart(server: PodServer, pod: FetchedPod) -> None:
    new = openai.OpenAI(base_url=f"{server.url}/v1", api_key=OTHER, max_retries=0)

    def admitted() -> bool:
        try:
            return bool(new.models.list().data)
        except openai.AuthenticationError:
            return False

    assert not admitted()
    mount(pod.keys, shop=RIGHT, next=OTHER)
    wait_until(admitted)


def test_metrics_are_on_a_port_of_their_own(server: PodServer) -> None:
    server.chat("router", QUESTION)
    samples = server.metrics()
    for name in ("vllm:request_success_total", "vllm:time_to_first_token_seconds", "http_requests_total"):
        assert f"\n{name}" in samples
    served = re.findall(
        r'^finetune_serve_model_info{digest="sha256:\w+",model="(.+)",type="(.+)"} 1', samples, re.M
    )
    assert set(served) == {("base", "Base"), ("router", "Adapter")}
    assert 'finetune_serve_requests_total{code="200",model="router"}' in samples


def test_a_request_has_one_id_in_header_and_body(server: PodServer) -> None:
    answer = server.openai.completions.with_raw_response.create(
        model="base", prompt="Hello", max_tokens=1, extra_headers={"X-Request-Id": "shop-17"}
    )
    assert answer.headers["x-request-id"] == "shop-17"
    assert "shop-17" in answer.parse().id


@pytest.mark.parametrize("length", [3000, 20_000])
def test_a_schema_cannot_end_the_server(server: PodServer, length: int) -> None:
    """vLLM alone is ended by the longer one, and with the guidance backend by both."""
    with pytest.raises(openai.BadRequestError, match="too many references"):
        server.openai.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=1,
            extra_body=of_content(chain(length)),
        )
    assert server.chat("base", QUESTION, max_tokens=1).choices


def test_a_drain_finishes_streams_and_fails_no_request(pod: FetchedPod) -> None:
    with pod.server() as server:
        stream = server.openai.chat.completions.create(
            model="base",
            messages=[{"role": "user", "content": QUESTION}],
            stream=True,
            max_tokens=400,
            extra_body={"ignore_eos": True},
        )
        chunks = iter(stream)
        next(chunks)
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: server.health() == 503)

        body = {"model": "base", "prompt": "Hello", "max_tokens": 1}
        during = server.http.post("/v1/completions", json=body)
        text = [chunk for chunk in chunks if chunk.choices]

        assert (during.status_code, during.headers["connection"]) == (200, "close")
        assert text[-1].choices[0].finish_reason == "length"
        assert server.wait() == ExitCode.OK, server.log


def without_effect(pod: FetchedPod) -> None:
    path = pod.models / "router" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({k: torch.zeros_like(v) if "lora_B" in k else v for k, v in weights.items()}, path)


def of_another_run(pod: FetchedPod) -> None:
    path = probe_folder(pod.models, "router") / PROBE_FILE
    record = ProbeRecord.model_validate_json(path.read_bytes())
    path.write_text(record.model_copy(update={"tuned": record.base}).model_dump_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_effect, "ArtifactCorrupt: model 'router': its adapter changes nothing"),
        (of_another_run, "ArtifactCorrupt: model 'router': the weights do not predict what was recorded"),
    ],
)
def test_a_wrong_adapter_ends_the_server_before_it_is_ready(
    pod: FetchedPod, tmp_path: Path, change: Callable[[FetchedPod], None], message: str
) -> None:
    changed = pod.copy(tmp_path)
    change(changed)
    server = changed.server()
    assert server.wait() == ExitCode.BAD_CONFIG, server.log
    assert message in server.log
