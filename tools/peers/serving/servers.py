# SPDX-License-Identifier: Apache-2.0
"""The servers that are compared, as processes on this machine. Each computes with one thread."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import httpx

from finetune_operator.api.serving import Serving
from finetune_operator.manifests.engines.engine_inputs import ServingConfig
from finetune_operator.manifests.engines.vllm import vllm_command
from finetune_operator.manifests.weights import WeightsReference
from finetune_trainer.contract.environment import (
    CONFIG_ENV,
    MODELS_MOUNT,
    VLLM_MIDDLEWARE,
    VLLM_PYTHONPATH,
)
from finetune_trainer.contract.references import Owner
from finetune_trainer.contract.serving import ServeConfig, ServedModel
from finetune_trainer.contract.vocabulary import FULL_MODEL
from finetune_trainer.serve.vllm.engine_files import write_engine_files
from tools.bench.page import BenchError
from tools.bench.program import descendants
from tools.bootstrap.uv import ROOT
from tools.cluster.layout import free_port
from tools.cluster.processes import WITH_PARENT
from tools.models import gemma
from tools.peers import vllm
from tools.peers.serving import eitherway

MODEL: Final = "gemma"
"""Name and folder of the served model, which is Gemma 3 270M in bfloat16."""
MAX_STREAMS: Final = 32
CONTEXT: Final = 512
KEY: Final = "sk-bench"
THREADS: Final = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
POLL_SECONDS: Final = 0.1
START_SECONDS: Final = 900
LOG_CHARACTERS: Final = 3000


@dataclass(frozen=True)
class ServerCommand:
    """How a server is started."""

    name: str
    arguments: list[str]
    environment: Mapping[str, str]
    port: int
    model: str = MODEL
    """Name of the model in requests."""


@dataclass(frozen=True)
class RunningServer:
    """A server that has generated a token."""

    url: str
    model: str
    pid: int | None
    """Its process on this machine; None if it is a pod."""
    start_seconds: float = 0
    """Time from its start to its first token."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers of requests, besides the API key."""

    def past_the_middleware(self) -> "RunningServer":
        """vLLM alone, in the same process."""
        return replace(self, headers={eitherway.PAST_THE_MIDDLEWARE: "1"})


@dataclass(frozen=True)
class ServersFolder:
    """A folder with the model, an API key and the files for vLLM, as in a pod."""

    path: Path

    @classmethod
    def made_in(cls, path: Path) -> "ServersFolder":
        """Copy the model to an empty folder."""
        shutil.copytree(gemma(), path / MODEL, copy_function=os.link)
        write_engine_files(path, path / MODEL, ())
        return cls.fetched(path)

    @classmethod
    def fetched(cls, path: Path) -> "ServersFolder":
        """Complete a folder in which an init container has ended."""
        (path / "keys").mkdir()
        (path / "keys" / "bench").write_text(KEY)
        folder = cls(path)
        shutil.copy(eitherway.__file__, folder.python_path)
        return folder

    @property
    def python_path(self) -> str:
        """Folder of the packages that vLLM's process imports."""
        return VLLM_PYTHONPATH.replace(MODELS_MOUNT, str(self.path))

    def weights(self) -> list[Path]:
        """Files of the model's weights."""
        return sorted((self.path / MODEL).glob("*.safetensors"))

    def vllm(self) -> ServerCommand:
        """vLLM with the options of the operator, and both ways to it."""
        config = self._serve_config()
        command = vllm_command(
            ServingConfig(
                serve=config,
                settings=Serving.model_validate(
                    {"contextLength": CONTEXT, "maxConcurrentRequests": MAX_STREAMS}
                ),
                weights=(WeightsReference("pvc://bench", f"sha256:{0:064}", FULL_MODEL),),
                accelerators=0,
                finish_seconds=20,
            )
        )
        both = f"{eitherway.__name__.rpartition('.')[2]}.{eitherway.EitherWay.__name__}"
        options = [
            argument.replace(MODELS_MOUNT, str(self.path)).replace(VLLM_MIDDLEWARE, both)
            for argument in command[1:]
        ]
        python = str(vllm.environment() / "bin" / "python")
        address = ("--host=127.0.0.1", f"--port={config.port}")
        return ServerCommand(
            "vLLM with the middleware",
            [python, "-m", "vllm.entrypoints.cli.main", *options, *vllm.CPU_ARGUMENTS, *address],
            {
                "PATH": os.environ["PATH"],
                "HOME": str(self.path),
                "VLLM_CACHE_ROOT": str(self.path / "cache"),
                "PYTHONPATH": self.python_path,
                CONFIG_ENV: config.to_json(),
                **vllm.CPU_VARIABLES,
                **THREADS,
            },
            config.port,
        )

    def built_in(self) -> ServerCommand:
        """The built-in engine."""
        config = self._serve_config()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", CONFIG_ENV: config.to_json(), **THREADS}
        return ServerCommand(
            "built-in engine", [sys.executable, "-m", "finetune_trainer"], environment, config.port
        )

    def transformers_serve(self) -> ServerCommand:
        """The server of transformers, without options for speed, as its documentation starts it."""
        port, model = free_port(), str(self.path / MODEL)
        program = str(Path(sys.executable).with_name("transformers"))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **THREADS}
        arguments = [program, "serve", model, "--device=cpu", "--host=127.0.0.1", f"--port={port}"]
        return ServerCommand("transformers serve", arguments, environment, port, model)

    def _serve_config(self) -> ServeConfig:
        return ServeConfig(
            owner=Owner(kind="InferenceDeployment", namespace="bench", name="bench", uid="bench"),
            base_folder=MODEL,
            models=(ServedModel(name=MODEL, folder=MODEL, type=FULL_MODEL),),
            models_path=str(self.path),
            port=free_port(),
            metrics_port=free_port(),
            max_model_length=CONTEXT,
            drain_seconds=0,
            api_keys_path=str(self.path / "keys"),
        )


@contextmanager
def running(server: ServerCommand, folder: Path) -> Iterator[RunningServer]:
    """A server that runs during the block, with its log in `folder`.

    Raises:
        BenchError: it did not start.
    """
    log = folder / f"{server.port}.log"
    begin = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*WITH_PARENT, *server.arguments],
            cwd=ROOT,
            env=dict(server.environment),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{server.port}"
    try:
        with client_of(url) as client:
            while not answers(client, server.model):
                if process.poll() is not None or time.perf_counter() - begin > START_SECONDS:
                    raise BenchError(f"{server.name} did not start: {log.read_text()[-LOG_CHARACTERS:]}")
                time.sleep(POLL_SECONDS)
        yield RunningServer(url, server.model, process.pid, time.perf_counter() - begin)
    finally:
        # vLLM has a process for its engine, which outlives the first one.
        for pid in list(descendants(process.pid)):
            os.kill(pid, signal.SIGKILL)
        process.wait()


@contextmanager
def client_of(url: str) -> Iterator[httpx.Client]:
    """A client with the API key."""
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=url, headers=headers, timeout=START_SECONDS, trust_env=False) as client:
        yield client


def answers(client: httpx.Client, model: str) -> bool:
    """Whether the server generates a token."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 1}
    try:
        answer = client.post("/v1/completions", json=body)
    except httpx.TransportError:
        return False
    return answer.is_success and bool(answer.json()["choices"])
