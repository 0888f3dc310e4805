# SPDX-License-Identifier: Apache-2.0
"""vLLM as a process, with a model small enough for a CPU."""

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self

from tests.trainer.serve.endpoint import DEADLINE_SECONDS, Endpoint
from tools.cluster.layout import free_port
from tools.cluster.processes import WITH_PARENT
from tools.peers import vllm

OPTIONS: Final = (
    vllm.FLOAT32,
    *vllm.CPU_ARGUMENTS,
    *("--max-model-len", "512"),
    *("--max-num-seqs", "8"),
)
"""What a small model on a CPU needs in addition to the documented options."""
ENVIRONMENT: Final = {**vllm.CPU_VARIABLES, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
LOG_CHARACTERS: Final = 4000
NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class VLLMServer(Endpoint):
    """A server that runs from `with` to its end."""

    def __init__(
        self, arguments: list[str], folder: Path, environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """`environment`: variables in addition to those of each server."""
        port = free_port()
        super().__init__(port)
        self._log = folder / "vllm.log"
        command = [str(vllm.environment() / "bin" / "python"), "-m", "vllm.entrypoints.cli.main", "serve"]
        address = ("--host", "127.0.0.1", "--port", str(port))
        kept = {"VLLM_CACHE_ROOT": str(vllm.environment() / "cache")}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*WITH_PARENT, *command, *arguments, *OPTIONS, *address],
                env={"PATH": os.environ["PATH"], "HOME": str(folder), **ENVIRONMENT, **kept, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """The end of what the server wrote."""
        return self.whole_log[-LOG_CHARACTERS:]

    @property
    def whole_log(self) -> str:
        """All that the server wrote."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Id of its process."""
        return self._process.pid

    def wait(self) -> int:
        """Wait for the end of the process. Returns its exit code."""
        return self._process.wait(timeout=DEADLINE_SECONDS)

    def load_adapter(self, name: str, folder: Path) -> str | None:
        """Load an adapter while the server runs. Returns the error message; None if it was loaded."""
        answer = self.http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(folder)})
        return None if answer.is_success else str(answer.json()["error"]["message"])

    def chat(self, model: str, question: str, template: Mapping[str, Any] = NONE, **settings: Any) -> Any:
        """The greedy answer to one question, with token ids.

        `template` has arguments for the chat template.
        """
        return self.openai.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            extra_body={"return_token_ids": True, "chat_template_kwargs": dict(template)},
            **settings,
        )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.health() != 200:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(f"vLLM does not answer:\n{self.log}")
            time.sleep(0.2)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self._process.terminate()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
