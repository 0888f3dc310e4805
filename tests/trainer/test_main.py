# SPDX-License-Identifier: Apache-2.0
"""Trainer processes from config to exit code and termination message."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_trainer.contract.base import CONTRACT_VERSIONS
from finetune_trainer.contract.configs import CollectConfig, EvaluateConfig
from finetune_trainer.contract.environment import (
    CONFIG_ENV,
    MAX_TERMINATION_MESSAGE_BYTES,
    TERMINATION_MESSAGE_ENV,
)
from finetune_trainer.contract.evaluation import AnswerEngine, CheckFinding, GateEvidence, LiveModel
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.results import (
    EvaluateResult,
    PreflightResult,
    PrepareResult,
    Score,
    SourceResult,
    StageResult,
)
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason, Subject
from finetune_trainer.runtime import termination
from tests.trainer.preparing import OWNER, RUN, Preparation, json_lines, pairs
from tests.trainer.processes import run, run_fresh, start

NO_TORCH = """
import sys
from finetune_trainer.__main__ import main
code = main()
heavy = sorted({"torch", "transformers", "datasets", "pyarrow"} & sys.modules.keys())
sys.exit(f"imported: {heavy}" if heavy else code)
"""


OPENMP = """
import runpy
try:
    runpy.run_module("finetune_trainer", run_name="__main__")
except SystemExit:
    import torch
"""
"""Ends a trainer process at its invalid config, and only then loads torch, which shows OpenMP's settings."""


@pytest.fixture
def preparation(tmp_path: Path) -> Preparation:
    return Preparation(tmp_path)


def unbound(result: StageResult) -> StageResult:
    """Return the result as the store keeps it, without the digest of the config."""
    return result.model_copy(update={"config_digest": None})


def test_a_stage_leaves_its_result_in_the_store_and_as_last_words(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(50)))

    ended = run_fresh(preparation.config(source))

    assert ended.code == ExitCode.OK
    assert ended.result.outcome == "Succeeded"
    assert ended.result.prepare is not None
    assert len(preparation.all_rows(ended.result.prepare)) == 50
    assert preparation.store.read_result(RUN, "prepare") == unbound(ended.result)


def test_a_run_that_is_done_says_so_again_without_doing_it_again(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(50)))
    first = run(preparation.config(source))
    source.unlink()

    second = run(preparation.config(source))

    assert second.code == ExitCode.OK
    assert second.termination_message == first.termination_message


@pytest.mark.parametrize(
    ("live", "image", "code"),
    [("1", None, ExitCode.OK), ("2", None, ExitCode.BAD_CONFIG), ("1", "vllm:1", ExitCode.BAD_CONFIG)],
)
def test_an_evaluation_that_is_done_is_repeated_for_another_champion_or_engine(
    preparation: Preparation, live: str, image: str | None, code: ExitCode
) -> None:
    weights, champion, other = (f"sha256:{character * 64}" for character in ("c", "1", live))
    done = EvaluateResult(checkpoint=weights, split="test", scores=(), live=champion)
    preparation.store.write_result(StageResult(stage="evaluate", run=RUN, outcome="Succeeded", evaluate=done))
    config = EvaluateConfig(
        owner=OWNER,
        run=RUN,
        store=preparation.store_config,
        base_model=weights,
        dataset=weights,
        checkpoint=weights,
        live=LiveModel(name="champion", digest=other, type="Adapter", base_model=weights),
        answer_engine=AnswerEngine(name="VLLM", image=image) if image else None,
    )

    ended = run(config)

    # Nothing is in the store, so an evaluation that begins ends at once.
    assert ended.code == code
    assert (ended.result.evaluate is not None) == (code == ExitCode.OK)


def test_preparing_imports_no_machine_learning(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(50)))

    assert run_fresh(preparation.config(source), "-c", NO_TORCH).code == ExitCode.OK


@pytest.mark.parametrize("chosen", [None, "ACTIVE"])
def test_threads_of_a_stage_wait_without_taking_processor_time_unless_the_pod_says_otherwise(
    chosen: str | None,
) -> None:
    policy = {"OMP_WAIT_POLICY": chosen} if chosen else {}
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}

    ended = subprocess.run(
        [sys.executable, "-c", OPENMP],
        env={**inherited, **policy, "OMP_DISPLAY_ENV": "VERBOSE", CONFIG_ENV: "{}"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert ("GOMP_SPINCOUNT = '0'" in ended.stderr) == (chosen is None), ended.stderr


def test_a_failure_leaves_its_reason_and_a_later_try_replaces_it(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", json_lines([*pairs(50), {"prompt": "?"}]))

    failed = run(preparation.config(source))
    stored = preparation.store.read_result(RUN, "prepare")
    source.write_text(json_lines(pairs(50)))
    mended = run(preparation.config(source))

    assert failed.code == ExitCode.BAD_DATA
    assert (failed.result.outcome, failed.result.reason) == ("Failed", FailureReason.INVALID_DATA)
    assert failed.result.prepare is not None
    assert failed.result.prepare.problems[0].startswith('row 51: "completion" is missing')
    assert stored == unbound(failed.result)
    assert (mended.code, mended.result.outcome) == (ExitCode.OK, "Succeeded")


def test_a_look_at_a_source_that_has_not_changed_leaves_nothing_in_the_store(
    preparation: Preparation,
) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(50)))
    first = run(preparation.config(source)).result.prepare
    assert first is not None
    before = sorted((preparation.root / "store").rglob("*"))
    config = preparation.config(source, known_version=first.sources[0].version, previous=first.dataset)

    look = run(config.model_copy(update={"run": f"{RUN}-1"}))

    assert look.code == ExitCode.OK
    version = SourceResult(version=first.sources[0].version)
    assert look.result.prepare == PrepareResult(sources=(version,), unchanged=True)
    assert sorted((preparation.root / "store").rglob("*")) == before


BASE = {
    "contract": 2,
    "stage": "prepare",
    "owner": {"kind": "Dataset", "namespace": "team", "name": "tickets", "uid": "0f0f"},
    "run": RUN,
    "store": {"uri": "pvc://artifacts", "path": "/nowhere"},
    "sources": [{"uri": "pvc://rows", "path": "/nowhere"}],
}


@pytest.mark.parametrize(
    ("config", "reason", "message"),
    [
        (
            {**BASE, "contract": 3},
            FailureReason.CONTRACT_MISMATCH,
            "the operator uses version 3, and this trainer image supports 2;",
        ),
        ({**BASE, "news": 1}, FailureReason.CONTRACT_MISMATCH, "news: Extra inputs are not permitted"),
        ({**BASE, "store": {}}, FailureReason.INVALID_CONFIG, "store.uri: Field required"),
        (
            {**BASE, "sources": [{"uri": 7}]},
            FailureReason.INVALID_CONFIG,
            "sources.0.uri: Input should be a valid string",
        ),
        (
            {**BASE, "split": {"seed": "1"}},
            FailureReason.INVALID_CONFIG,
            "split.seed: Input should be a valid",
        ),
        ({**BASE, "run": "a/b"}, FailureReason.INVALID_CONFIG, "run: 'a/b' is not a folder name"),
        ({**BASE, "x": "y" * 70_000}, FailureReason.INVALID_CONFIG, "bytes; the limit is 65536"),
    ],
)
def test_a_config_that_cannot_be_used_names_the_field(
    config: dict[str, object], reason: FailureReason, message: str
) -> None:
    ended = run(json.dumps(config))

    assert ended.code == ExitCode.BAD_CONFIG
    # A config that is too long is not read, so its stage is unknown.
    assert f"{reason}" in ended.termination_message
    assert message in ended.termination_message


@pytest.mark.parametrize("version", CONTRACT_VERSIONS)
def test_the_result_is_in_the_contract_of_the_config(tmp_path: Path, version: int) -> None:
    store = {"uri": "pvc://artifacts", "path": str(tmp_path / "store")}
    (tmp_path / "rows.jsonl").write_text("[]\n")
    source = {"uri": "pvc://rows", "path": str(tmp_path)}
    ended = run(json.dumps({**BASE, "contract": version, "store": store, "sources": [source]}))

    assert ended.code == ExitCode.BAD_DATA
    assert ended.result.contract == version


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "InvalidConfig: the config is not valid JSON: Expecting property name"),
        ("[]", "InvalidConfig: the config is a JSON list, not an object"),
        ('{"stage": "bake"}', "InvalidConfig: stage: Input tag 'bake' found using 'stage' does not match"),
    ],
)
def test_a_config_without_a_stage_is_refused_in_words(config: str, message: str) -> None:
    ended = run(config)

    assert ended.code == ExitCode.BAD_CONFIG
    assert ended.termination_message.startswith(message)


def test_a_config_can_come_from_a_file(preparation: Preparation, tmp_path: Path) -> None:
    source = preparation.write("rows.jsonl", json_lines(pairs(50)))
    file = tmp_path / "config.json"
    file.write_text(preparation.config(source).to_json())

    assert run("", "--config", str(file)).code == ExitCode.OK
    missing = run("", "--config", str(tmp_path / "none.json"))
    assert missing.code == ExitCode.BAD_CONFIG
    assert "none.json" in missing.termination_message


def test_a_signal_ends_a_stage_with_its_own_exit_code(preparation: Preparation, tmp_path: Path) -> None:
    with start(preparation.config(tmp_path / "late.jsonl")) as process:
        process.read_until("waiting up to 60 s")
        process.send_signal(signal.SIGTERM)
        ended = process.finish()

    assert ended.code == ExitCode.PREEMPTED_SAVED
    assert "stopped by a signal" in ended.logs[-1]["message"]


def test_a_store_that_cannot_be_written_is_worth_another_try(
    preparation: Preparation, tmp_path: Path
) -> None:
    (tmp_path / "store").write_text("not a folder")
    source = preparation.write("rows.jsonl", json_lines(pairs(50)))

    ended = run(preparation.config(source))

    assert ended.code == ExitCode.STORE_UNAVAILABLE
    assert (ended.result.outcome, ended.result.reason) == ("Failed", FailureReason.STORE_UNAVAILABLE)
    assert "check that the claim is mounted" in ended.result.message


def test_memory_that_is_used_up_is_told_with_advice(preparation: Preparation) -> None:
    source = preparation.write("rows.jsonl", '{"a":[' + "[]," * 5_000_000 + "0]}")

    ended = run_fresh(preparation.config(source), memory_bytes=224 << 20)

    assert ended.code == ExitCode.INTERNAL
    assert ended.result.reason == FailureReason.INTERNAL
    assert "the pod is out of memory; give the stage more memory" in ended.result.message
    assert any("Traceback" in line.get("exception", "") for line in ended.logs)
    assert preparation.store.read_result(RUN, "prepare") is None


def collecting(preparation: Preparation) -> CollectConfig:
    return CollectConfig(owner=OWNER, run=RUN, store=preparation.store_config, of="prepare")


def test_the_result_of_a_pod_that_is_gone_can_be_collected(preparation: Preparation) -> None:
    first = run(preparation.config(preparation.write("rows.jsonl", json_lines(pairs(50)))))

    collected = run(collecting(preparation))

    assert collected.code == ExitCode.OK
    assert collected.result == unbound(first.result)


def test_collecting_nothing_is_a_failure_of_that_stage(preparation: Preparation) -> None:
    ended = run(collecting(preparation))

    assert ended.code == ExitCode.BAD_CONFIG
    assert (ended.result.stage, ended.result.reason) == ("prepare", FailureReason.ARTIFACT_NOT_FOUND)
    assert preparation.store.read_result(RUN, "prepare") is None


def test_last_words_drop_problems_before_anything_else() -> None:
    result = StageResult(
        stage="prepare",
        run=RUN,
        outcome="Failed",
        reason=FailureReason.INVALID_DATA,
        message="ü" * 600,
        prepare=PrepareResult(problem_count=10, problems=tuple("ä" * 200 for _ in range(10))),
    )

    text = termination.fit_message(result)

    assert len(text.encode()) <= MAX_TERMINATION_MESSAGE_BYTES
    parsed = StageResult.parse(text)
    assert parsed is not None
    assert parsed.message == result.message
    assert parsed.prepare is not None
    assert parsed.prepare.problem_count == 10
    assert 1 <= len(parsed.prepare.problems) < 10


def test_last_words_drop_warnings_of_preflight_from_the_last_one() -> None:
    warnings = tuple(f"{number} " + "ä" * 400 for number in range(10))
    found = PreflightResult(
        base_model=f"sha256:{'1' * 64}",
        hyperparameters=Hyperparameters(
            epochs=1,
            learning_rate=1e-4,
            batch_size=1,
            max_sequence_length=64,
            seed=0,
            total_steps=1,
            save_every_steps=1,
            warmup_ratio=0.05,
            scheduler="Linear",
            weight_decay=0,
        ),
        chat_template="model",
        warnings=warnings,
    )

    text = termination.fit_message(
        StageResult(stage="preflight", run=RUN, outcome="Succeeded", preflight=found)
    )

    assert len(text.encode()) <= MAX_TERMINATION_MESSAGE_BYTES
    parsed = StageResult.parse(text)
    assert parsed is not None
    assert parsed.preflight is not None
    assert 1 <= len(parsed.preflight.warnings) < 10
    assert parsed.preflight.warnings == warnings[: len(parsed.preflight.warnings)]


SUBJECTS: tuple[Subject, ...] = ("Tuned", "Base", "Prompted", "Live")


def long_evaluation(undecided: str = "") -> EvaluateResult:
    """20 metrics of 4 models, 16 gates, and findings."""
    bounds = {"low": 0.123456, "high": 0.654321, "gain_low": -0.123456, "gain_high": 0.123456}
    metrics = [f"custom/an-own-metric-{number}" for number in range(20)]
    return EvaluateResult(
        checkpoint=f"sha256:{'1' * 64}",
        split="test",
        scores=tuple(
            Score(metric=metric, subject=subject, value=1 / 7, rows=12345, low=0.123456, high=0.654321)
            for subject in SUBJECTS
            for metric in metrics
        ),
        evidence=tuple(
            GateEvidence(
                gate=gate,
                value=1 / 7,
                rows=12345,
                gain=-1 / 7,
                more_rows=12345,
                undecided=undecided,
                **({} if undecided else bounds),
            )
            for gate in range(16)
        ),
        findings=(CheckFinding(check="memorization", veto=True, message="ü" * 512),),
        live=f"sha256:{'2' * 64}",
        report_uri=f"s3://bucket/{'a' * 100}",
    )


@pytest.mark.parametrize("undecided", ["", "the rows form fewer groups than a bound needs: " + "ü" * 400])
def test_last_words_keep_what_decides_the_gates(undecided: str) -> None:
    evaluated = long_evaluation(undecided)
    result = StageResult(
        stage="evaluate",
        run="1" * 36,
        outcome="Succeeded",
        evaluate=evaluated,
        nonce="1" * 32,
        config_digest="1" * 64,
    )

    text = termination.fit_message(result)

    assert len(text.encode()) <= MAX_TERMINATION_MESSAGE_BYTES
    parsed = StageResult.parse(text)
    assert parsed is not None
    assert parsed.evaluate is not None
    kept = parsed.evaluate.scores
    assert kept == evaluated.scores[: len(kept)]
    figures = {"undecided": ""}
    assert [each.model_copy(update=figures) for each in parsed.evaluate.evidence] == [
        each.model_copy(update=figures) for each in evaluated.evidence
    ]
    assert [finding.veto for finding in parsed.evaluate.findings] == [True]
    assert (parsed.evaluate.live, parsed.evaluate.report_uri) == (evaluated.live, evaluated.report_uri)


def test_last_words_shorten_a_long_message() -> None:
    result = StageResult(stage="train", run=RUN, outcome="Failed", reason="Internal", message="ü" * 9000)

    parsed = StageResult.parse(termination.fit_message(result))

    assert parsed is not None
    assert parsed.message.endswith("ü…")


def test_last_words_go_where_the_kubelet_looks_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "termination-log"
    termination.write("early", path)
    assert not path.exists()
    path.touch()

    termination.write("ü" * 3000, path)

    assert path.read_text() == "ü" * (MAX_TERMINATION_MESSAGE_BYTES // 2)


def test_outside_a_pod_last_words_go_to_the_named_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "message"
    monkeypatch.setenv(TERMINATION_MESSAGE_ENV, str(path))

    termination.write("the rows have no prompt", tmp_path / "termination-log")

    assert path.read_text() == "the rows have no prompt"
    assert not (tmp_path / "termination-log").exists()


def test_the_command_explains_itself() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_trainer", "--help"], capture_output=True, text=True, check=True
    )

    assert "FINETUNE_CONFIG" in ended.stdout
