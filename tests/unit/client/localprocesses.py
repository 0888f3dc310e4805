# SPDX-License-Identifier: Apache-2.0
"""Containers of local runs that end as a test says, without a process."""

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from finetune_client.local.processes import Launch
from finetune_client.local.session import Session
from finetune_client.program import main
from finetune_client.verbs import local_run
from finetune_trainer.contract.configs import CONFIG_ADAPTER, AnyConfig, EvaluateConfig, StageConfig
from finetune_trainer.contract.environment import TERMINATION_MESSAGE_ENV
from finetune_trainer.contract.results import StageResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from tests.docsblocks import ROOT
from tools.fakepods import succeeded

EXAMPLE = ROOT / "examples" / "ticket-routing"
FILES = tuple(str(EXAMPLE / f"{name}.yaml") for name in ("dataset", "finetunejob", "inferencedeployment"))
STAGES = ["prepare", "preflight", "train", "evaluate"]

Outcome = int | Callable[["FakeProcess"], int]
"""Exit code of a container, or a function that returns it."""


class FakeProcess:
    """A container. It ends when it is looked at for the second time, or on SIGTERM if it is held."""

    def __init__(self, launch: Launch, outcome: Outcome, *, is_held: bool = False) -> None:
        self.launch = launch
        self.config: AnyConfig = CONFIG_ADAPTER.validate_json(launch.config.read_text())
        self.is_held = is_held
        self.signals: list[str] = []
        self.at_sigterm: int | None = ExitCode.PREEMPTED_SAVED
        """Exit code after SIGTERM; None if the container ignores it."""
        self._outcome = outcome
        self._code: int | None = None
        self._looks = 0

    def poll(self) -> int | None:
        self._looks += 1
        if self._code is None and not self.is_held and self._looks > 1:
            self._code = self._outcome if isinstance(self._outcome, int) else self._outcome(self)
        return self._code

    def terminate(self) -> None:
        self.signals.append("SIGTERM")
        self._code = self.at_sigterm

    def kill(self) -> None:
        self.signals.append("SIGKILL")
        self._code = 137

    def leave(self, text: str) -> None:
        """Leave a termination message."""
        Path(self.launch.environment[TERMINATION_MESSAGE_ENV]).write_text(text)


def succeed(process: FakeProcess) -> int:
    """Leave a plausible result, bound to the config of the process."""
    if isinstance(process.config, StageConfig):
        process.leave(succeeded(process.config).to_json())
    return ExitCode.OK


def fail(reason: FailureReason, message: str, code: ExitCode) -> Callable[[FakeProcess], int]:
    """Leave a failure, and end with this exit code."""

    def end(process: FakeProcess) -> int:
        config = process.config
        assert isinstance(config, StageConfig)
        result = StageResult.model_validate(
            {
                "stage": config.stage,
                "run": config.run,
                "outcome": "Failed",
                "reason": reason,
                "message": message,
            }
        )
        process.leave(config.bind(result).to_json())
        return code

    return end


def badly_scored(config: EvaluateConfig) -> StageResult:
    """An evaluation in which the tuned model is as bad as the base model."""
    result = succeeded(config).to_dict()
    for each in (*result["evaluate"]["scores"], *result["evaluate"].get("evidence", ())):
        each |= {key: 0.0 for key in ("value", "gain", "low", "high", "gainLow", "gainHigh") if key in each}
    return StageResult.model_validate(result)


def score_badly(process: FakeProcess) -> int:
    """Leave a `badly_scored` evaluation."""
    assert isinstance(process.config, EvaluateConfig)
    process.leave(badly_scored(process.config).to_json())
    return ExitCode.OK


class Machine:
    """Runs `finetune run` in a folder with fake containers.

    Attributes:
        outcomes: what the next containers of a stage do; after them, each succeeds.
        held: stages whose containers run until SIGTERM.
        started: all containers so far.
        on_pause: called in each turn of the program.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.outcomes: dict[str, list[Outcome]] = {}
        self.held: set[str] = set()
        self.started: list[FakeProcess] = []
        self.sessions: list[Session] = []
        self.on_pause: Callable[[Session], None] = lambda _: None
        (folder / "models" / "gemma-3-270m").mkdir(parents=True)
        monkeypatch.chdir(folder)
        monkeypatch.setattr(local_run, "Session", self._session)

    def _session(self, *arguments: object) -> Session:
        make = partial(Session, start=self._start, probe=lambda _: True, first_backoff=timedelta())

        def pause(_: float) -> None:
            self.on_pause(session)

        session: Session = make(*arguments, pause=pause)  # type: ignore[arg-type]
        self.sessions.append(session)
        return session

    def _start(self, launch: Launch) -> FakeProcess:
        following = self.outcomes.get(launch.stage, [])
        outcome = following.pop(0) if following else succeed
        launch.log.parent.mkdir(parents=True, exist_ok=True)
        launch.log.touch()
        process = FakeProcess(launch, outcome, is_held=launch.stage in {*self.held, "serve"})
        self.started.append(process)
        return process

    @property
    def stages(self) -> list[str]:
        """Stages of the containers that were started."""
        return [each.config.stage for each in self.started]

    def run(self, *arguments: str, files: tuple[str, ...] = FILES) -> int:
        """Run the program to its end; returns its exit code."""
        try:
            main(["run", *files, "--claim", f"models={self.folder / 'models'}", *arguments])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def crash_after(self, writes: int) -> "Crash":
        """Let the program end without a warning after this number of written objects."""
        return Crash(writes)


class Killed(BaseException):
    """The program was killed."""


class Crash:
    """Raises Killed at a write, and at all later ones."""

    def __init__(self, writes: int) -> None:
        self._left = writes

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Count the writes of objects from now on."""
        from finetune_client.local.persistence import Folder

        save = Folder.save

        def counted(folder: Folder, key: tuple[str, str], manifest: object) -> None:
            self._left -= 1
            if self._left < 0:
                raise Killed
            save(folder, key, manifest)  # type: ignore[arg-type]

        monkeypatch.setattr(Folder, "save", counted)

    @staticmethod
    def ignored() -> suppress:
        """A block in which the program may be killed."""
        return suppress(Killed)
