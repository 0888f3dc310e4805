# SPDX-License-Identifier: Apache-2.0
"""Answers of an evaluation by a serving engine, which runs before the trainer."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_trainer.contract.configs import AnswersConfig, AnswerServer, EvaluateConfig, PromptsConfig
from finetune_trainer.contract.evaluation import (
    AnswerEngine,
    EngineVersion,
    GenerationSettings,
    LiveModel,
    PromptedModel,
)
from finetune_trainer.contract.results import EvaluateResult
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, Subject
from finetune_trainer.evaluate.answering import engine_side, trainer_side
from finetune_trainer.evaluate.answering.engine_side import EngineProcess
from finetune_trainer.evaluate.answering.exchange import Exchange
from finetune_trainer.evaluate.measured_model import row_seed
from finetune_trainer.evaluate.measurement_log import FILE, subject_digest
from finetune_trainer.evaluate.report import PAGE_NAME
from finetune_trainer.runtime.termination import StageFailure
from tests.trainer.engineserver import VERSION, command
from tests.trainer.test_evaluate_live import Line
from tests.waiting import eventually
from tools.cluster.layout import free_port

SUBJECTS: Final[tuple[Subject, ...]] = ("Tuned", "Base", "Prompted", "Live")
METRICS: Final = ("exact_match", "loss", "answer_tokens", "truncated")
FAILING: Final = "import sys; print('{}'); sys.exit(3)"
SAME_ANSWER: Final = [5] * 40
ANSWERING: Final = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"version": "1"}')

    def do_POST(self):
        self.send_response(int(sys.argv[2]))
        self.end_headers()
        self.wfile.write(sys.argv[3].encode())

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
"""A server that answers each prompt with the status and the body in its arguments."""


@dataclass(frozen=True)
class Pod:
    """The containers of an evaluate pod, with a folder that they share."""

    line: Line
    config: EvaluateConfig
    folder: Path

    @classmethod
    def of(cls, line: Line, folder: Path, run: str, live: LiveModel | None = None, **settings: Any) -> "Pod":
        engine = AnswerEngine(name="VLLM", image="vllm:1", max_lora_rank=8, folder=str(folder))
        given = {"metrics": METRICS, "answer_engine": engine, **settings}
        config = line.config(run, live, **{"subjects": SUBJECTS, **given})
        return cls(line, config, folder)

    @property
    def exchange(self) -> Exchange:
        return Exchange(self.folder)

    def write_prompts(self) -> None:
        trainer_side.run(PromptsConfig(evaluate=self.config))

    def answer(self, *servers: AnswerServer, port: int = 0, **settings: Any) -> None:
        engine_side.run(AnswersConfig(servers=servers, folder=str(self.folder), port=port, **settings))

    def run(self, *servers: AnswerServer, **settings: Any) -> EvaluateResult:
        """All containers in their order."""
        self.write_prompts()
        self.answer(*servers, **settings)
        return self.line.bench.run_evaluate(self.config)

    def predictions(self) -> list[dict[str, Any]]:
        return predictions(self.line, self.config.run)


def predictions(line: Line, run: str) -> list[dict[str, Any]]:
    """The header without digests, and each row without its time."""
    content = line.bench.store.run_folder(run, "evaluate").read(FILE) or b""
    lines = [json.loads(each) for each in content.splitlines()]
    return [
        {name: value for name, value in each.items() if name not in {"seconds", "subjects"}} for each in lines
    ]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return Line(tmp_path_factory.mktemp("engine"))


@pytest.fixture(scope="module")
def champion(line: Line) -> LiveModel:
    return line.champion("adapter")


def script(text: str, *arguments: object, models: Sequence[Subject] = ("Tuned",)) -> AnswerServer:
    """A server that is a Python program."""
    names = dict.fromkeys(models, "base")
    return AnswerServer(command=(sys.executable, "-c", text, *map(str, arguments)), models=names)


def refusing(port: int, status: int) -> AnswerServer:
    return script(ANSWERING, port, status, "the prompt is too long")


def answering(port: int) -> AnswerServer:
    """A server that gives `SAME_ANSWER` to each prompt."""
    choice = {"token_ids": SAME_ANSWER, "finish_reason": "length"}
    return script(ANSWERING, port, 200, json.dumps({"choices": [choice]}))


def test_an_engine_gives_the_predictions_of_the_trainer(
    line: Line, champion: LiveModel, tmp_path: Path
) -> None:
    pod = Pod.of(line, tmp_path, "by the engine", champion, prompted=PromptedModel(examples=2))
    port, models = free_port(), pod.exchange.models
    adapters = [f"{name}={models / name}" for name in ("tuned", "live")]
    served: dict[Subject, str] = {"Tuned": "tuned", "Base": "base", "Prompted": "base", "Live": "live"}
    server = AnswerServer(command=command(port, models / "base", adapters), models=served)

    result = pod.run(server, port=port)

    expected = line.evaluate(
        "by the trainer", champion, subjects=SUBJECTS, metrics=METRICS, prompted=PromptedModel(examples=2)
    )
    assert result.engine == EngineVersion(name="VLLM", version=VERSION)
    assert result.model_copy(update={"engine": None, "report_uri": None}) == expected.model_copy(
        update={"report_uri": None}
    )
    header, *rows = pod.predictions()
    assert header.pop("engine") == VERSION
    assert [header, *rows] == predictions(line, "by the trainer")
    page = line.bench.store.run_folder(pod.config.run, "evaluate").read(PAGE_NAME) or b""
    assert f"VLLM {VERSION}".encode() in page


def test_the_text_of_an_answer_is_that_of_the_engine_and_not_generated_again(
    line: Line, tmp_path: Path
) -> None:
    pod = Pod.of(line, tmp_path, "other text", subjects=("Tuned",), metrics=("exact_match",))
    port = free_port()

    pod.run(answering(port), port=port)

    rows = pod.predictions()[1:]
    assert {each["row"]: each["tokens"] for each in rows} == dict.fromkeys(range(1, 6), 40)
    assert len({each["text"] for each in rows}) == 1


def test_measured_rows_are_not_answered_again(line: Line, tmp_path: Path) -> None:
    pod = Pod.of(line, tmp_path, "resumed", subjects=("Tuned",), metrics=("exact_match",))
    port = free_port()
    first = pod.run(answering(port), port=port)
    for kind in ("prompts", "answers"):
        (pod.folder / f"{kind}-tuned.jsonl").unlink()  # the next pod has another volume

    again = pod.run(script(FAILING.format("an engine that is not needed")))

    assert pod.exchange.prompts("Tuned") is None
    assert again == first


ENDS: Final = {
    "ValueError: no such model": (FailureReason.INTERNAL, ExitCode.INTERNAL),
    "torch.OutOfMemoryError: CUDA out of memory": (FailureReason.OUT_OF_MEMORY, ExitCode.BAD_CONFIG),
}


@pytest.mark.parametrize("text", ENDS)
def test_an_engine_that_ends_fails_the_stage_with_its_error(line: Line, tmp_path: Path, text: str) -> None:
    run = f"ends {ENDS[text][0]}"
    pod = Pod.of(line, tmp_path, run, subjects=("Tuned",), metrics=("exact_match",))

    with pytest.raises(StageFailure, match=f"ended with exit code 3: {text}") as caught:
        pod.run(script(FAILING.format(text)), port=free_port())

    assert (caught.value.reason, caught.value.exit_code) == ENDS[text]
    assert "whose engine is Transformers" in caught.value.message


def test_a_prompt_that_the_engine_refuses_is_named(line: Line, tmp_path: Path) -> None:
    pod = Pod.of(line, tmp_path, "refused", subjects=("Tuned",), metrics=("exact_match",))
    port = free_port()

    with pytest.raises(StageFailure, match=r"refuses the prompt of row \d, .* is too long") as caught:
        pod.run(refusing(port, 400), port=port)

    assert caught.value.reason is FailureReason.INVALID_CONFIG


def test_an_engine_that_hangs_is_ended(line: Line, tmp_path: Path) -> None:
    pod = Pod.of(line, tmp_path, "hangs", subjects=("Tuned",), metrics=("exact_match",))
    port = free_port()

    with pytest.raises(StageFailure, match="hangs after 0 of 5 answers") as caught:
        pod.run(refusing(port, 200), port=port, step_timeout_seconds=0)

    assert caught.value.reason is FailureReason.STEP_TIMEOUT


def test_processes_that_survive_their_engine_are_ended(tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = f"import subprocess; open({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '600']).pid))"

    with EngineProcess((sys.executable, "-c", code), free_port()) as engine, pytest.raises(StageFailure):
        engine.wait_until_ready()

    eventually("the child has ended", lambda: not _command_of(child.read_text()))


def _command_of(pid: str) -> bytes:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def test_without_answers_of_the_champion_the_evaluation_continues(
    line: Line, champion: LiveModel, tmp_path: Path
) -> None:
    port = free_port()
    pod = Pod.of(line, tmp_path, "no live", champion, subjects=("Tuned", "Live"), metrics=("exact_match",))

    result = pod.run(
        answering(port),
        script(FAILING.format("ValueError: no such model"), models=("Live",)),
        port=port,
    )

    (unmeasured,) = result.unmeasured
    assert unmeasured.subject == "Live"
    assert "ended with exit code 3: ValueError: no such model" in unmeasured.message
    assert {score.subject for score in result.scores} == {"Tuned"}


def test_an_answer_that_is_missing_is_reported(line: Line, tmp_path: Path) -> None:
    pod = Pod.of(line, tmp_path, "missing", subjects=("Tuned",), metrics=("exact_match",))

    with pytest.raises(StageFailure, match="no answer of the model Tuned to row") as caught:
        line.bench.run_evaluate(pod.config)

    assert caught.value.exit_code == ExitCode.INTERNAL


def test_a_subject_that_cannot_be_opened_is_reported_by_the_trainer(line: Line, tmp_path: Path) -> None:
    gone = LiveModel(name="gone", digest="sha256:" + "0" * 64, type="Adapter", base_model=line.base)
    pod = Pod.of(line, tmp_path, "gone", gone, subjects=("Live",), metrics=("exact_match",))

    pod.write_prompts()

    assert pod.exchange.prompts("Live") is None


def test_prompts_have_the_stop_tokens_and_the_settings_of_the_evaluation(line: Line, tmp_path: Path) -> None:
    settings = GenerationSettings(max_tokens=7, temperature=0.5, top_p=0.9, seed=3)
    pod = Pod.of(line, tmp_path, "settings", subjects=("Tuned", "Base"), generation=settings)

    pod.write_prompts()

    for subject in pod.config.subjects:
        found = pod.exchange.prompts(subject)
        assert found is not None
        header, asked = found
        assert (header.temperature, header.top_p) == (0.5, 0.9)
        assert header.stop_ids
        assert [each.row for each in asked] == [1, 2, 3, 4, 5]
        assert {each.max_tokens for each in asked} == {7}
        assert [each.seed for each in asked] == [row_seed(settings, row) for row in range(1, 6)]
    assert (pod.exchange.models / "tuned" / "adapter_config.json").exists()
    assert (pod.exchange.models / "base" / "config.json").exists()
    assert (pod.exchange.python / "finetune_trainer" / "evaluate" / "answering" / "engine_side.py").exists()


def test_predictions_of_an_engine_or_of_another_image_are_not_those_of_the_trainer(
    line: Line, tmp_path: Path
) -> None:
    by_engine = Pod.of(line, tmp_path, "digest").config
    assert by_engine.answer_engine is not None
    other = by_engine.answer_engine.model_copy(update={"image": "vllm:2"})
    configs = (
        by_engine,
        by_engine.model_copy(update={"answer_engine": None}),
        by_engine.model_copy(update={"answer_engine": other}),
    )

    assert len({subject_digest(config, "Tuned") for config in configs}) == 3


def test_an_engine_that_the_trainer_replaces_is_a_finding(line: Line) -> None:
    reason = "The answers were generated by the engine Transformers, and not by VLLM: it is DoRA"
    engine = AnswerEngine(name="Transformers", unsupported=reason)

    result = line.evaluate(
        "replaced", None, subjects=("Tuned",), metrics=("exact_match",), answer_engine=engine
    )

    assert [(each.check, each.veto, each.message) for each in result.findings] == [
        ("AnswerEngine", False, reason)
    ]
    assert result.engine is None


def test_the_engine_image_needs_only_libraries_that_an_engine_has() -> None:
    """Others are not in its image."""
    text = "import sys, finetune_trainer.evaluate.answering.engine_side; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not {"torch", "transformers", "peft", "obstore", "jinja2", "numpy"} & loaded
