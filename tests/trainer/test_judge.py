# SPDX-License-Identifier: Apache-2.0
"""Judges: both orders, budgets, replies that cannot be read, endpoints that fail, and restarts."""

import asyncio
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

import pytest

from finetune_trainer.contract.configs import EvaluateConfig
from finetune_trainer.contract.evaluation import GateBound, UnmeasuredSubject
from finetune_trainer.contract.own_metrics import Judge
from finetune_trainer.contract.references import SecretMount
from finetune_trainer.contract.vocabulary import ExitCode, Subject
from finetune_trainer.evaluate.examples import Example
from finetune_trainer.evaluate.judge import judging
from finetune_trainer.evaluate.judge.judging import CALLS_IN_FLIGHT, QUIET_SECONDS, Judging, ask_all
from finetune_trainer.evaluate.judge.questions import AnswerPair, Question, read_verdict
from finetune_trainer.evaluate.judge.verdicts import (
    JudgeCounts,
    Judged,
    JudgedAnswers,
    JudgeReply,
    RowVerdicts,
)
from finetune_trainer.evaluate.measurement_log import PredictionLog, RowPrediction
from finetune_trainer.remote import retries
from finetune_trainer.remote.json_api import JsonApi
from finetune_trainer.remote.retries import ProblemKind, RemoteProblem, Unreachable
from finetune_trainer.rows import Row
from finetune_trainer.runtime.signals import Stop
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.stage.judge_endpoint import judge_warnings
from finetune_trainer.statistics.bootstrap import Groups
from finetune_trainer.tokens.encoding import EncodedRow
from tests.trainer.judgeserver import Asked, JudgeServer, likes, verdict
from tests.trainer.processes import Process, run, start
from tests.trainer.workbench import OWNER, ROWS, RUN, TEAMS, Sheet, Workbench

DIGEST = f"sha256:{'0' * 64}"
GOOD, BAD = "a kind answer", "rude"


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer(likes("kind")) as server:
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the pauses between attempts."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_SECONDS", 0.001)


def judge(server: JudgeServer, **settings: Any) -> Judge:
    return Judge(
        **{
            "name": "tone",
            "endpoint": server.url,
            "model": "referee",
            "instructions": "Kind answers are better.",
            **settings,
        }
    )


@dataclass
class Court:
    """An evaluation with answers, and its judges."""

    root: Path
    answers: Mapping[Subject, Sequence[str | None]]
    unmeasured: Sequence[UnmeasuredSubject] = ()
    stop: Stop = field(default_factory=Stop)
    counted: list[int] = field(default_factory=list)

    def run(self, *judges: Judge, seed: int = 0) -> list[Judged]:
        numbers = range(1, len(self.answers["Tuned"]) + 1)
        config = EvaluateConfig(
            owner=OWNER,
            run=RUN,
            store=Workbench(self.root).store_config,
            base_model=DIGEST,
            dataset=DIGEST,
            checkpoint=DIGEST,
            subjects=tuple(self.answers),
            judges=judges,
            seed=seed,
        )
        with Workbench(self.root).store.run_folder(RUN, "evaluate") as folder:
            log = PredictionLog(folder, config)
            log.add(
                [
                    RowPrediction(subject=subject, row=row, text=text, metrics={})
                    for subject, texts in self.answers.items()
                    for row, text in zip(numbers, texts, strict=True)
                ]
            )
            return Judging(
                config=config,
                rows=[Row.pair(f"question {row}", f"expected {row}") for row in numbers],
                examples=[
                    Example(row, EncodedRow([], []), [], 1, frozenset({f"expected {row}"})) for row in numbers
                ],
                log=log,
                folder=folder,
                unmeasured=self.unmeasured,
                stop=self.stop,
                feed=lambda: None,
                count=self.counted.append,
            ).run()

    def replies(self, name: str = "tone") -> list[dict[str, Any]]:
        """The lines of the file of replies."""
        path = self.root / "store" / "runs" / RUN / "evaluate" / f"judge-{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def court(root: Path, rows: int = 6, better: int = 4) -> Court:
    """The tuned model is better on the first rows, its base model on the others."""
    return Court(
        root,
        {
            "Tuned": [GOOD if row < better else BAD for row in range(rows)],
            "Base": [BAD if row < better else GOOD for row in range(rows)],
        },
    )


def test_a_win_counts_in_both_orders_only(tmp_path: Path, server: JudgeServer) -> None:
    def opinion(asked: Asked) -> str:
        # Row 1 is judged by its position, row 2 by nothing.
        question = json.loads(asked.body["messages"][1]["content"])["conversation"][0]["content"]
        return {"question 1": verdict("A"), "question 2": verdict("tie")}.get(question, likes("kind")(asked))

    server.opinion = opinion

    (found,) = court(tmp_path).run(judge(server))

    assert found.problem == ""
    assert found.verdicts.values == {1: 0.5, 2: 0.5, 3: 1, 4: 1, 5: 0, 6: 0}
    assert found.verdicts.counts == JudgeCounts(
        rows=6, rows_in_split=6, calls=12, won=2, tied=2, lost=2, flipped=1, longer=4
    )


def test_each_pair_is_shown_in_both_orders_with_the_instructions(tmp_path: Path, server: JudgeServer) -> None:
    Court(tmp_path, {"Tuned": [GOOD], "Base": [BAD]}).run(judge(server, temperature=1))

    assert sorted((asked.first, asked.second) for asked in server.asked) == [(GOOD, BAD), (BAD, GOOD)]
    for asked in server.asked:
        assert "Kind answers are better." in asked.system
        assert (asked.body["model"], asked.body["temperature"]) == ("referee", 1)
        assert "question 1" in asked.body["messages"][1]["content"]


def test_equal_answers_are_a_tie_without_a_call(tmp_path: Path, server: JudgeServer) -> None:
    (found,) = Court(tmp_path, {"Tuned": [GOOD, BAD], "Base": [BAD, BAD]}).run(judge(server))

    assert found.verdicts.values == {1: 1, 2: 0.5}
    assert (found.verdicts.counts.same, len(server.seen)) == (1, 2)


def test_the_answers_of_the_rows_can_be_the_opponent(tmp_path: Path, server: JudgeServer) -> None:
    server.opinion = likes("expected")

    (found,) = court(tmp_path, rows=2).run(judge(server, against="Reference"))

    assert found.verdicts.values == {1: 0, 2: 0}


def test_a_budget_judges_a_sample_that_a_larger_budget_contains(tmp_path: Path, server: JudgeServer) -> None:
    judges = [judge(server, name=f"of-{calls}", max_calls=calls) for calls in (5, 12, 1000)]

    small, large, whole = court(tmp_path, rows=20).run(*judges)

    assert [len(each.verdicts.values) for each in (small, large, whole)] == [2, 6, 20]
    assert small.verdicts.values.keys() < large.verdicts.values.keys()
    assert (small.verdicts.counts.calls, small.verdicts.counts.rows_in_split) == (4, 20)
    (other,) = court(tmp_path, rows=20).run(judges[1], seed=3)
    assert other.verdicts.values.keys() != large.verdicts.values.keys()


class Calls:
    """An endpoint whose calls are all in flight until `release` is called; some fail."""

    def __init__(self, failing: int = 0) -> None:
        self.made = 0
        self._failing = failing
        self._open = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def post(self, _path: str, _content: dict[str, Any]) -> Any:
        self.made += 1
        number = self.made
        if number == self._failing:
            raise Unreachable(RemoteProblem(ProblemKind.ABSENT, "no such model"))
        await self._open.wait()
        for _ in range(number):  # so that the replies arrive one after another
            await asyncio.sleep(0)
        return {"choices": [{"message": {"content": verdict("A")}}]}

    def release(self) -> None:
        self._open.set()


def questions(server: JudgeServer, count: int) -> list[Question]:
    return [
        Question(judge(server), "system", AnswerPair(row, (), GOOD, BAD), tuned_first=True)
        for row in range(1, count + 1)
    ]


def test_a_slow_store_loses_no_reply_that_was_paid_for_before_a_signal(server: JudgeServer) -> None:
    calls, stop, kept, now = Calls(), Stop(), list[JudgeReply](), [0.0]

    def keep(reply: JudgeReply) -> None:
        if not kept:
            now[0] += QUIET_SECONDS + 1  # the store takes its time
        kept.append(reply)

    def feed() -> None:
        stop.set()
        calls.release()

    asked = questions(server, 20)
    asyncio.run(ask_all(cast(JsonApi, calls), asked, keep, stop=stop, feed=feed, clock=lambda: now[0]))

    assert len(kept) == calls.made == CALLS_IN_FLIGHT


def test_a_call_that_fails_loses_no_reply_of_the_calls_in_flight(server: JudgeServer) -> None:
    calls, kept = Calls(failing=3), list[JudgeReply]()

    asked = questions(server, 20)
    with pytest.raises(Unreachable):
        asyncio.run(ask_all(cast(JsonApi, calls), asked, kept.append, stop=Stop(), feed=calls.release))

    assert len(kept) == calls.made - 1 == CALLS_IN_FLIGHT - 1


def test_no_call_is_repeated_by_the_next_process(tmp_path: Path, server: JudgeServer) -> None:
    trial = court(tmp_path, rows=20)

    def opinion(asked: Asked) -> str:
        if len(server.seen) == 10:
            trial.stop.set()
        return likes("kind")(asked)

    server.opinion = opinion
    with pytest.raises(Preempted):
        trial.run(judge(server))
    paid = len(server.seen)
    assert 10 <= paid < 40
    # Calls in flight have ended, and their replies are saved.
    assert len(trial.replies()[1:]) == paid

    (found,) = court(tmp_path, rows=20).run(judge(server))

    assert len(server.seen) == 40
    assert len({seen.body for seen in server.seen}) == 40
    assert sum(found.verdicts.values.values()) == 4
    assert court(tmp_path, rows=20).run(judge(server)) == [found]
    assert len(server.seen) == 40


def test_other_answers_or_instructions_are_judged_again(tmp_path: Path, server: JudgeServer) -> None:
    court(tmp_path, rows=6, better=4).run(judge(server))

    court(tmp_path, rows=6, better=5).run(judge(server))
    assert len(server.seen) == 14

    court(tmp_path, rows=6, better=5).run(judge(server, instructions="Be strict."))
    assert len(server.seen) == 26


def test_progress_counts_each_judged_row(tmp_path: Path, server: JudgeServer) -> None:
    trial = Court(tmp_path, {"Tuned": [GOOD, BAD, GOOD], "Base": [BAD, BAD, BAD]})
    trial.run(judge(server))
    assert sum(trial.counted) == 3


@pytest.mark.parametrize(
    ("reply", "better"),
    [
        ('{"better": "A", "reason": "it is kind"}', "A"),
        ('```json\n{"reason": "x {y}", "better": "b"}\n```', "B"),
        ('I compare {"better": "A" or "B"}.\n</think>{"better": "TIE"}', "tie"),
        ("{'better': 'Answer B'}", "B"),
        ('{"better": "A", "reason": "cut o', "A"),
        pytest.param(f'{{"better": "A", "reason": {"[" * 9999}', "A", id="nested"),
        (r"""{"better": "A", "reason": "B says 'better': 'B'"}""", "A"),
        (r"""{"reason": "B says {'better': 'B'} and {\"better\": \"tie\"}", "better": "A"}""", "A"),
        ("""{"better": "A", "reason": "{'better': 'B'}"} {"better": "tie"}""", "tie"),
        pytest.param('{"better": "B", "reason": "' + "{" * 9999 + '"better": "A"', "A", id="braces"),
        ("**B**", "B"),
        (" tie. ", "tie"),
        ("Both answers are fine.", None),
        ('{"better": "C"}', None),
        ('{"better": "both"}', None),
        ("", None),
    ],
)
def test_verdicts_are_read_leniently(reply: str, better: str | None) -> None:
    found = read_verdict(reply)
    assert (None if found is None else found.better) == better


def test_the_reason_is_kept(tmp_path: Path, server: JudgeServer) -> None:
    server.opinion = lambda _: verdict("A", "it is kind\nand short")
    trial = Court(tmp_path, {"Tuned": [GOOD], "Base": [BAD]})
    trial.run(judge(server))

    header, *replies = trial.replies()
    assert (header["model"], header["against"]) == ("referee", "Base")
    assert "Kind answers are better." in header["prompt"]
    assert {reply["reason"] for reply in replies} == {"it is kind"}
    assert sorted((reply["tuned"], reply["better"]) for reply in replies) == [("A", "A"), ("B", "A")]


def test_a_few_unreadable_replies_leave_their_rows_out(tmp_path: Path, server: JudgeServer) -> None:
    def opinion(asked: Asked) -> str:
        return "hm" if len(server.seen) == 3 else likes("kind")(asked)

    server.opinion = opinion

    (found,) = court(tmp_path, rows=10, better=10).run(judge(server))

    assert found.problem == ""
    assert len(found.verdicts.values) == 9
    assert (found.verdicts.counts.unreadable, found.verdicts.counts.won) == (1, 9)


def test_many_unreadable_replies_end_the_calls(tmp_path: Path, server: JudgeServer) -> None:
    server.opinion = lambda asked: "I like both" if len(server.seen) % 2 else likes("kind")(asked)

    (found,) = court(tmp_path, rows=100).run(judge(server))

    assert "replies have no verdict, the last one because: the reply has no verdict" in found.problem
    assert len(server.seen) < 100
    seen = len(server.seen)
    court(tmp_path, rows=100).run(judge(server))
    assert len(server.seen) == seen


def test_an_endpoint_that_refuses_all_calls_is_not_asked_all_of_them(
    tmp_path: Path, server: JudgeServer
) -> None:
    server.faults.extend([400] * 1000)

    (found,) = court(tmp_path, rows=400).run(judge(server))

    assert "20 of 20 replies have no verdict, the last one because: status 400" in found.problem
    assert len(server.seen) < 40


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "name a Secret with a token in its credentialsSecretRef"),
        (404, "not found: status 404: Not Found; check its endpoint and model"),
        (302, "which is not followed"),
    ],
)
def test_an_endpoint_that_cannot_be_used_leaves_the_judge_without_a_value(
    tmp_path: Path, server: JudgeServer, status: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "MIN_READABLE_CALLS", 1)
    server.faults.extend([status] * 100)

    (found,) = court(tmp_path).run(judge(server))

    assert found.problem.startswith("judge tone: ")
    assert advice in found.problem
    assert len(server.seen) <= 12


def test_an_endpoint_that_is_down_leaves_the_judge_without_a_value(tmp_path: Path) -> None:
    with JudgeServer(likes("kind")) as server:
        lost = judge(server)
    judged = JudgedAnswers(court(tmp_path).run(lost), None)

    gates = (GateBound(metric="exact_match", min=0.5), GateBound(metric="judge/tone", min=0.5))
    (evidence,) = judged.evidence(gates)
    (finding,) = judged.findings()
    assert list(judged.scores()) == []
    assert (evidence.gate, evidence.rows, evidence.value) == (1, 0, None)
    assert "check that its server runs" in evidence.undecided
    assert (finding.check, finding.veto, finding.message) == ("Judge", False, evidence.undecided)


def test_preflight_warns_of_endpoints_that_will_not_work(tmp_path: Path, server: JudgeServer) -> None:
    secret = server.secret(tmp_path / "secret", token="wrong-token")
    signed_in = judge(server, credentials=secret)
    with JudgeServer(likes("kind")) as lost:
        down = judge(lost, name="down")

    assert list(judge_warnings([signed_in])) == []
    server.models = ["referee", "other"]
    assert list(judge_warnings([signed_in])) == []
    (unlisted,) = judge_warnings([judge(server, model="refree")])
    assert unlisted == f"judge tone: {server.url} does not list the model refree"
    server.authorization = "Bearer right"
    refused, unreachable = judge_warnings([signed_in, down])
    assert "status 401" in refused
    assert refused.endswith("correct Secret credentials")
    assert "check that its server runs" in unreachable
    assert {seen.method for seen in server.seen} == {"GET"}


def test_busy_endpoints_are_asked_again(tmp_path: Path, server: JudgeServer) -> None:
    server.faults.extend([429, 503, 500])

    (found,) = court(tmp_path).run(judge(server))

    assert found.problem == ""
    assert len(server.seen) == 12 + 3
    assert found.verdicts.counts.calls == 12


def test_a_limit_of_the_rate_ends_no_judge_while_other_calls_succeed(
    tmp_path: Path, server: JudgeServer
) -> None:
    server.passes = 5

    (found,) = court(tmp_path, rows=10).run(judge(server))

    assert found.problem == ""
    assert found.verdicts.counts.calls == 20


def test_the_token_goes_to_the_endpoint_of_the_secret_only(tmp_path: Path, server: JudgeServer) -> None:
    server.authorization = "Bearer let-me-in-please"
    secret = server.secret(tmp_path / "secret", token="let-me-in-please")
    (found,) = court(tmp_path).run(judge(server, credentials=secret))
    assert found.problem == ""

    with JudgeServer(likes("kind")) as other:
        (refused,) = court(tmp_path).run(judge(other, name="other", credentials=secret))
        assert other.seen == []
    assert "which is not the server of" in refused.problem
    assert "let-me-in" not in refused.problem


def test_the_address_of_a_judge_with_credentials_is_in_its_secret(
    tmp_path: Path, server: JudgeServer
) -> None:
    server.authorization = "Bearer let-me-in-please"
    secret = server.secret(tmp_path / "secret", endpoint=server.url, token="let-me-in-please")
    signed_in = judge(server, endpoint=None, credentials=secret)

    assert list(judge_warnings([signed_in])) == []
    (found,) = court(tmp_path).run(signed_in)
    assert found.problem == ""
    assert found.judge.endpoint == server.url

    gone = SecretMount(name="judge", path=str(tmp_path / "nowhere"))
    (refused,) = court(tmp_path).run(judge(server, name="other", endpoint=None, credentials=gone))
    assert refused.problem.startswith("judge other: Secret judge: it does not exist in this namespace")
    assert list(judge_warnings([judge(server, endpoint=None, credentials=gone)]))


def test_a_wrong_token_names_the_secret(tmp_path: Path, server: JudgeServer) -> None:
    server.authorization = "Bearer right"
    secret = server.secret(tmp_path / "secret", token="wrong")
    (found,) = court(tmp_path).run(judge(server, credentials=secret))
    assert "correct Secret credentials" in found.problem


def test_an_opponent_that_was_not_measured_is_the_reason(tmp_path: Path, server: JudgeServer) -> None:
    missing = UnmeasuredSubject(subject="Live", message="the champion was deleted")
    trial = Court(tmp_path, {"Tuned": [GOOD], "Base": [BAD]}, unmeasured=[missing])

    (found,) = trial.run(judge(server, against="Live"))

    assert found.problem == "judge tone: Live was not measured: the champion was deleted"
    assert server.seen == []


def rates(values: Sequence[float], groups: Groups | None = None) -> JudgedAnswers:
    found = dict(enumerate(values, 1))
    counts = JudgeCounts(rows=len(values), rows_in_split=len(values))
    one = Judge(name="tone", endpoint="http://judge", model="m", instructions="i")
    return JudgedAnswers(
        [Judged(judge=one, prompt="p", verdicts=RowVerdicts(found, counts), replies_uri="u")], groups
    )


def test_a_gate_is_decided_by_the_bound_of_the_win_rate() -> None:
    judged = rates([1] * 40 + [0.5] * 20 + [0] * 20)
    (score,) = judged.scores()
    assert (score.metric, score.subject, score.value, score.rows) == ("judge/tone", "Tuned", 0.625, 80)
    assert score.low is not None
    assert score.high is not None
    assert 0.5 < score.low < 0.625 < score.high < 0.75

    (found,) = judged.evidence((GateBound(metric="judge/tone", min=0.5, confidence=0.95),))
    assert found.low is not None
    assert score.low < found.low < 0.625
    assert (found.value, found.gain, found.more_rows) == (0.625, None, None)


def test_wins_without_ties_are_a_proportion() -> None:
    (score,) = rates([1] * 12).scores()
    assert score.low == pytest.approx(0.735, abs=1e-3)  # Clopper and Pearson


def test_rows_of_one_group_count_as_one() -> None:
    values = [1.0, 0.5] * 40
    alone = next(rates(values).scores())
    groups = Groups("customer", {row: f"c{row // 4}" for row in range(1, 81)})
    grouped = next(rates([1.0] * 40 + [0.5] * 40, groups).scores())
    assert alone.low is not None
    assert grouped.low is not None
    assert grouped.low < alone.low
    unknown = rates(values, Groups("customer", None))
    (found,) = unknown.evidence((GateBound(metric="judge/tone", min=0.5, confidence=0.95),))
    assert "add customer to spec.keepColumns" in found.undecided


def trained_config(bench: Workbench, **settings: Any) -> EvaluateConfig:
    """The config that evaluates a new checkpoint on four rows."""
    base, dataset = bench.model(), bench.dataset(ROWS, (), ROWS[:4])
    (checkpoint,) = bench.train(bench.train_config(base, dataset, epochs=1)).checkpoints
    return bench.evaluate_config(base, dataset, checkpoint, metrics=("exact_match",), **settings)


def test_a_stopped_pod_waits_for_its_calls_and_the_next_one_makes_the_others(
    tmp_path: Path, server: JudgeServer
) -> None:
    many = tuple(judge(server, name=f"no-{number}", against="Reference") for number in range(3))
    config = trained_config(Workbench(tmp_path), judges=many)
    processes: list[Process] = []

    def opinion(asked: Asked) -> str:
        if len(server.seen) == 3:
            processes[0].send_signal(signal.SIGTERM)
        return likes(*TEAMS)(asked)

    server.opinion = opinion
    with start(config) as process:
        processes.append(process)
        assert process.wait() == ExitCode.PREEMPTED_SAVED
    paid = len(server.seen)
    assert paid < 24

    ended = run(config)

    assert ended.code == ExitCode.OK
    assert ended.result.evaluate is not None
    assert len({seen.body for seen in server.seen}) * len(many) == len(server.seen) == 24


def test_an_evaluation_has_the_win_rates_of_its_judges(tmp_path: Path, server: JudgeServer) -> None:
    bench, sheet = Workbench(tmp_path), Sheet()
    server.opinion = likes(*TEAMS)
    config = trained_config(
        bench,
        judges=(judge(server, against="Reference"), judge(server, name="other")),
        gates=(GateBound(metric="judge/tone", min=0.5),),
    )

    result = bench.run_evaluate(config, sheet)

    scores = {(score.metric, score.subject): score.value for score in result.scores}
    assert scores["judge/tone", "Tuned"] == 0
    assert ("judge/other", "Tuned") in scores
    (evidence,) = result.evidence
    assert (evidence.gate, evidence.value, evidence.rows) == (0, 0, 4)
    assert result.report_uri is not None
    page = tmp_path / "store" / result.report_uri.removeprefix("pvc://artifacts/")
    report = json.loads(page.with_name("evaluation.json").read_text())
    tone, other = report["judges"]
    assert [each["judged"][0] for each in report["answers"]] == [
        {"metric": "judge/tone", "against": "Reference", "verdict": "lost", "reason": "because"}
    ] * 4
    assert (tone["against"], tone["winRate"], tone["lost"]) == ("Reference", 0, 4)
    assert other["calls"] + 2 * other["same"] == 8
    assert "judge/tone" in page.read_text()
    assert (sheet.seen[-1].step, sheet.seen[-1].total_steps) == (16, 16)
