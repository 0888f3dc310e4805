# SPDX-License-Identifier: Apache-2.0
"""The engine's side: starts a serving engine as a child process, which answers the prompts of an evaluation.

It always ends with exit code 0, so that the trainer starts, which reports why a subject has no answers.
"""

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import httpx

from finetune_trainer.contract.configs import AnswersConfig, AnswerServer
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, Subject
from finetune_trainer.evaluate.answering.exchange import (
    AnswersHeader,
    Exchange,
    PromptsHeader,
    RowAnswer,
    RowPrompt,
)
from finetune_trainer.runtime import configuration, logs, signals
from finetune_trainer.runtime.termination import StageFailure

STARTUP_SECONDS: Final = 7200.0
"""Time in which the engine can load its models; as in the pods of endpoints."""
END_SECONDS: Final = 60.0
"""Time from SIGTERM until the processes of the engine are killed."""
POLL_SECONDS: Final = 0.2
KEPT_LINES: Final = 200
"""Lines of the engine's log in which the cause of its end is searched."""
ERROR: Final = re.compile(r"\b(?:[A-Za-z_.]*Error|Exception): .+")
OUT_OF_MEMORY: Final = re.compile(r"OutOfMemoryError|out of memory|No available memory|Free memory on device")
MAX_CAUSE_CHARACTERS: Final = 300


class EngineProcess:
    """The server, from `with` to its end. Its log is in that of this process."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        # In a group of its own: the engine has a process per device, which hold its memory.
        self._process = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._log = threading.Thread(target=self._copy_log, name="engine log", daemon=True)
        self._log.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the server, and wait until the memory of its devices is free."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        # Also after the server has ended: its processes may survive it, and hold the memory of their devices.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.join(END_SECONDS)

    def wait_until_ready(self) -> str:
        """Wait until the server answers. Returns the version of the engine; `unknown` if it names none.

        Raises StageFailure (OUT_OF_MEMORY, INTERNAL).
        """
        deadline = time.monotonic() + STARTUP_SECONDS
        with httpx.Client(base_url=self.url) as client:
            while not _is_healthy(client):
                if self._process.poll() is not None:
                    raise self.failure()
                if time.monotonic() > deadline:
                    raise StageFailure(
                        FailureReason.INTERNAL,
                        f"the engine has not loaded its models within {STARTUP_SECONDS:.0f} seconds",
                        ExitCode.INTERNAL,
                    )
                time.sleep(POLL_SECONDS)
            return _version(client)

    def failure(self) -> StageFailure:
        """Why the server ended, by the last error in its log."""
        self._log.join(POLL_SECONDS)
        lines = list(self._lines)
        errors = [found[0] for line in lines if (found := ERROR.search(line)) is not None]
        # The last errors only say that another process has failed.
        cause = next((each for each in errors if OUT_OF_MEMORY.search(each)), errors[0] if errors else "")
        shown = (cause or (lines[-1] if lines else "it wrote no log")).strip()[:MAX_CAUSE_CHARACTERS]
        code = self._process.poll()
        ended = "does not answer" if code is None else f"ended with exit code {code}"
        text = f"the engine {ended}: {shown}"
        if OUT_OF_MEMORY.search(cause):
            return StageFailure(FailureReason.OUT_OF_MEMORY, text)
        return StageFailure(FailureReason.INTERNAL, text, ExitCode.INTERNAL)

    def _copy_log(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._process.stdout:
            self._lines.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()


def _is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def _version(client: httpx.Client) -> str:
    try:
        return str(client.get("/version").json()["version"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return "unknown"


REQUESTS_IN_FLIGHT: Final = 256
"""As many as the engine answers at the same time by default."""
BUILT_IN_ADVICE: Final = (
    "If the engine cannot load this model, set spec.evaluation.profile of a new run to a ComputeProfile whose"
    " engine is Transformers"
)

logger = logging.getLogger(__name__)


def run(config: AnswersConfig) -> None:
    """Answer the prompts of all subjects, each server in its turn; one without prompts is not started."""
    exchange = Exchange(Path(config.folder))
    for server in config.servers:
        waiting = [subject for subject in server.models if exchange.prompts(subject) is not None]
        if waiting:
            _serve(exchange, server, waiting, config)


def _serve(
    exchange: Exchange, server: AnswerServer, waiting: Sequence[Subject], config: AnswersConfig
) -> None:
    try:
        with EngineProcess(server.command, config.port) as engine:
            version = engine.wait_until_ready()
            for subject in waiting:
                asking = _Asking(engine, server.models[subject], config.step_timeout_seconds)
                _answer(exchange, subject, asking, version)
    except StageFailure as failure:
        problem = failure
    except Exception as error:
        logger.exception("the answers ended with an unexpected error")
        problem = StageFailure(
            FailureReason.INTERNAL,
            f"{type(error).__name__}: {error}; the log of the container answers has the traceback",
            ExitCode.INTERNAL,
        )
    else:
        return
    logger.error("%s: %s", problem.reason, problem.message)
    advised = StageFailure(problem.reason, f"{problem.message}. {BUILT_IN_ADVICE}", problem.exit_code)
    for subject in waiting:
        if exchange.answers(subject) is None:
            exchange.write_problem(subject, advised)


def _answer(exchange: Exchange, subject: Subject, asking: "_Asking", version: str) -> None:
    found = exchange.prompts(subject)
    assert found is not None  # noqa: S101 - the subject waits for answers
    header, prompts = found
    logger.info("%s: answering %d rows", subject, len(prompts))
    begin = time.perf_counter()
    answers = asyncio.run(asking.all_of(header, prompts))
    seconds = (time.perf_counter() - begin) / len(answers)
    exchange.write_answers(subject, AnswersHeader(version=version, seconds=seconds), answers)


class _Asking:
    """Requests to one model of a server."""

    def __init__(self, engine: EngineProcess, model: str, timeout_seconds: int) -> None:
        self._engine = engine
        self._model = model
        self._timeout_seconds = timeout_seconds

    async def all_of(self, header: PromptsHeader, prompts: Sequence[RowPrompt]) -> list[RowAnswer]:
        """The answers in the order in which they end.

        Raises StageFailure: INVALID_CONFIG if the engine refuses a prompt, STEP_TIMEOUT if it hangs, and that
        of its process if it ends.
        """
        answers: list[RowAnswer] = []
        waiting, running = iter(prompts), set[asyncio.Task[RowAnswer]]()
        limits = httpx.Limits(max_connections=REQUESTS_IN_FLIGHT)
        # Without a limit of time for each request: a long answer may wait for many others.
        async with httpx.AsyncClient(base_url=self._engine.url, limits=limits, timeout=None) as client:  # noqa: S113
            try:
                while True:
                    while len(running) < REQUESTS_IN_FLIGHT and (prompt := next(waiting, None)) is not None:
                        running.add(asyncio.create_task(self._one(client, header, prompt)))
                    if not running:
                        return answers
                    done, running = await asyncio.wait(
                        running, timeout=self._timeout_seconds, return_when=asyncio.FIRST_COMPLETED
                    )
                    if not done:
                        raise StageFailure(
                            FailureReason.STEP_TIMEOUT,
                            f"the engine hangs after {len(answers)} of {len(prompts)} answers: none ended"
                            f" within {self._timeout_seconds} seconds",
                            ExitCode.INTERNAL,
                        )
                    answers.extend(task.result() for task in done)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _one(self, client: httpx.AsyncClient, header: PromptsHeader, prompt: RowPrompt) -> RowAnswer:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt.ids,
            "max_tokens": prompt.max_tokens,
            "temperature": header.temperature,
            "top_p": header.top_p,
            "stop_token_ids": header.stop_ids,
            "return_token_ids": True,
        }
        if prompt.seed is not None:
            body["seed"] = prompt.seed
        try:
            reply = await client.post("/v1/completions", json=body)
        except httpx.TransportError as error:
            raise self._engine.failure() from error
        if reply.is_server_error:
            raise StageFailure(FailureReason.INTERNAL, f"the engine failed: {reply.text}", ExitCode.INTERNAL)
        if not reply.is_success:
            raise StageFailure(
                FailureReason.INVALID_CONFIG,
                f"the engine refuses the prompt of row {prompt.row}, which has {len(prompt.ids)} tokens:"
                f" {reply.text}",
            )
        (choice,) = reply.json()["choices"]
        ids = tuple(choice["token_ids"])
        if choice["finish_reason"] == "stop" and ids and ids[-1] in header.stop_ids:
            ids = ids[:-1]
        return RowAnswer(row=prompt.row, ids=ids, finish_reason=choice["finish_reason"])


def run_in_pod() -> None:
    """Run the config of the pod. Raises StageFailure (INVALID_CONFIG, CONTRACT_MISMATCH) if it is invalid."""
    signals.exit_on_signal()
    logs.configure_logs()
    config = configuration.parse(os.environ.get(CONFIG_ENV))
    if not isinstance(config, AnswersConfig):
        raise StageFailure(FailureReason.INVALID_CONFIG, f"stage: an engine does not run {config.stage}")
    run(config)
