# SPDX-License-Identifier: Apache-2.0
"""What judges replied: a log of their replies, verdicts of rows, win rates, and the parts of the result.

The replies of a judge are in a file of the run, so that no process repeats a call that was paid for. The
first line is a header with the prompt. Every other line is a `JudgeReply` as JSON.

Win rates of the tuned model are estimates for all rows of their kind.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_trainer.contract.evaluation import CheckFinding, GateBound, GateEvidence
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.own_metrics import Judge
from finetune_trainer.contract.results import Score
from finetune_trainer.contract.vocabulary import Subject
from finetune_trainer.evaluate.estimates import TUNED, compute_evidence, compute_score, describe_shortage
from finetune_trainer.evaluate.json_lines import JsonLine, JsonLinesHeader, read_lines, to_content
from finetune_trainer.evaluate.judge.questions import AnswerPair, Preference, Question
from finetune_trainer.evaluate.subjects.opening import MAX_MESSAGE_CHARACTERS
from finetune_trainer.manifest import digest_of
from finetune_trainer.report.evaluation.facts import JudgedRow, ShownJudge
from finetune_trainer.runtime.progress import Interval
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.statistics.bootstrap import Groups, bootstrap_mean
from finetune_trainer.statistics.estimate import Estimate
from finetune_trainer.statistics.proportions import Proportion
from finetune_trainer.store import RunFolder

FORMAT: Final = 1
FLUSH_SECONDS: Final = 5.0
"""A killed process loses the replies that it received in this time."""

logger = logging.getLogger(__name__)


class JudgeReply(JsonLine):
    """What a judge replied to one call."""

    digest: str
    """Of the call."""
    row: int
    """Number of the row in the evaluated split, from 1."""
    tuned: Literal["A", "B"]
    """Place of the answer of the tuned model."""
    better: Preference | None = None
    """None: the reply could not be read."""
    reason: str = ""
    """Of the judge, or why there is no verdict."""


class _VerdictHeader(JsonLinesHeader):
    format: Annotated[int, Field(ge=1)] = FORMAT
    judge: str
    endpoint: str
    model: str
    against: str
    prompt: str
    """System turn of each call."""


class VerdictLog:
    """The replies of one judge, in the run's folder."""

    def __init__(self, folder: RunFolder, judge: Judge, system: str) -> None:
        """Read the replies that earlier processes received. Raises StageFailure (STORE_UNAVAILABLE)."""
        self._folder = folder
        self._file = f"judge-{judge.name}.jsonl"
        self._header = _VerdictHeader(
            judge=judge.name,
            endpoint=judge.endpoint or "",
            model=judge.model,
            against=judge.against,
            prompt=system,
        )
        self._interval = Interval(FLUSH_SECONDS)
        self._replies = self._read()
        self._saved = len(self._replies)

    @property
    def uri(self) -> str:
        """Location of the file."""
        return f"{self._folder.uri}/{self._file}"

    def find(self, question: Question) -> JudgeReply | None:
        """The reply to a call; None if it was not made."""
        return self._replies.get(question.digest)

    def add(self, reply: JudgeReply) -> None:
        """Keep a reply; saves now and then."""
        self._replies[reply.digest] = reply
        if self._interval.passed():
            self._try_to_save()

    def save(self) -> None:
        """Save all replies. Raises StageFailure (STORE_UNAVAILABLE)."""
        if len(self._replies) > self._saved:
            self._folder.write(self._file, to_content((self._header, *self._replies.values())))
            self._saved = len(self._replies)

    def _try_to_save(self) -> None:
        try:
            self.save()
        except StageFailure as failure:
            logger.warning("replies of a judge are saved later: %s", failure.message)

    def _read(self) -> dict[str, JudgeReply]:
        found = read_lines(self._folder, self._file, _VerdictHeader, JudgeReply, FORMAT)
        _, replies = found or (None, [])
        return {reply.digest: reply for reply in replies}


WON: Final = 1.0
TIED: Final = 0.5
LOST: Final = 0.0


@dataclass(frozen=True, kw_only=True)
class JudgeCounts:
    """Rows by their verdict, and replies. Rows with an unreadable reply have no verdict."""

    rows: int = 0
    """Rows of the sample."""
    rows_in_split: int = 0
    """Rows that could have been judged."""
    same: int = 0
    """Rows whose answers are equal: ties without a call."""
    calls: int = 0
    unreadable: int = 0
    """Calls whose reply has no verdict."""
    won: int = 0
    """Rows on which the answer of the tuned model is better in both orders."""
    tied: int = 0
    """Rows on which neither answer is better in both orders, also if the answers are equal."""
    lost: int = 0
    flipped: int = 0
    """Rows whose better answer changed with the order: the judge went by the position."""
    longer: int = 0
    """Won and lost rows whose better answer is the longer one."""


@dataclass(frozen=True)
class RowVerdicts:
    """The verdicts of one judge."""

    values: Mapping[int, float]
    """By number of the row: 1 if the tuned model is better in both orders, 0 if its opponent is, else 0.5."""
    counts: JudgeCounts
    reasons: Mapping[int, str] = field(default_factory=dict)
    """By number of the row, why it is won or lost, in the judge's words."""


def combine_replies(
    pairs: Sequence[AnswerPair],
    questions: Mapping[int, Sequence[Question]],
    reply_to: Callable[[Question], JudgeReply | None],
    rows_in_split: int,
) -> RowVerdicts:
    """Combine the replies to both orders.

    Args:
        pairs: the rows of the sample.
        questions: both calls of each row with different answers.
        reply_to: returns the reply to a call.
        rows_in_split: number of rows from which the sample was taken.
    """
    values: dict[int, float] = {}
    reasons: dict[int, str] = {}
    calls = unreadable = flipped = longer = 0
    for pair in pairs:
        if pair.is_same:
            values[pair.row] = TIED
            continue
        replies = [reply for each in questions[pair.row] if (reply := reply_to(each)) is not None]
        calls += len(replies)
        preferences = [_preference_of(reply) for reply in replies]
        unreadable += preferences.count(None)
        readable = [each for each in preferences if each is not None]
        if len(readable) < len(questions[pair.row]):
            continue
        flipped += set(readable) == {WON, LOST}
        value = readable[0] if len(set(readable)) == 1 else TIED
        values[pair.row] = value
        if value != TIED:
            reasons[pair.row] = replies[0].reason
            better, worse = (pair.tuned, pair.other) if value == WON else (pair.other, pair.tuned)
            longer += len(better) > len(worse)
    found = list(values.values())
    counts = JudgeCounts(
        rows=len(pairs),
        rows_in_split=rows_in_split,
        same=sum(pair.is_same for pair in pairs),
        calls=calls,
        unreadable=unreadable,
        won=found.count(WON),
        tied=found.count(TIED),
        lost=found.count(LOST),
        flipped=flipped,
        longer=longer,
    )
    return RowVerdicts(values, counts, reasons)


def _preference_of(reply: JudgeReply) -> float | None:
    """The value of one order for the tuned model; None if the reply could not be read."""
    if reply.better is None or reply.better == "tie":
        return None if reply.better is None else TIED
    return WON if reply.better == reply.tuned else LOST


@dataclass(frozen=True)
class WinRates:
    """The verdicts of judges. A win rate is the mean over the rows, and compares already: it has no gain."""

    values: Mapping[Metric, Mapping[int, float]]
    """Of each judge: 1, 0.5 or 0 by number of the row; at least one row."""
    groups: Groups | None
    """None if the rows are independent."""

    @property
    def measures(self) -> Collection[Metric]:
        """The metrics of judges that have a score."""
        return self.values

    def has(self, metric: Metric, subject: Subject) -> bool:
        """Return whether the metric has a value for the subject: only the tuned model has one."""
        return subject == TUNED and metric in self.values

    def score(self, metric: Metric, subject: Subject = TUNED) -> Estimate:
        """Estimate the win rate of the tuned model."""
        if not self.has(metric, subject):
            raise KeyError((metric, subject))
        of_rows = self.values[metric]
        values = list(of_rows.values())
        groups = None if self.groups is None else self.groups.shared(list(of_rows))
        if groups is None and TIED not in values:
            return Proportion(int(sum(values)), len(values))
        return bootstrap_mean(values, groups, (0, 1))

    def gain(self, metric: Metric, over: Subject) -> Estimate:
        """Raise ValueError: a win rate has no gain."""
        raise ValueError(f"{metric} is a comparison, and has no gain over {over}")

    def shortage(self, estimate: Estimate) -> str:
        """Return why the rows give no interval, as a sentence; empty if they give one."""
        return describe_shortage(estimate, self.groups)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one judge said."""

    judge: Judge
    prompt: str
    """System turn of each call."""
    verdicts: RowVerdicts
    problem: str = ""
    """Why there is no win rate, as a sentence for the user; empty if there is one."""
    replies_uri: str
    """File with the replies."""


@dataclass(frozen=True)
class JudgedAnswers:
    """What all judges said."""

    judges: Sequence[Judged]
    groups: Groups | None
    """None if the rows are independent."""

    @cached_property
    def rates(self) -> WinRates:
        """The win rates of the judges that have one."""
        values = {each.judge.metric: each.verdicts.values for each in self.judges if not each.problem}
        return WinRates(values, self.groups)

    def scores(self) -> Iterator[Score]:
        """Yield the win rates with their intervals."""
        for metric in self.rates.measures:
            yield compute_score(metric, TUNED, self.rates)

    def evidence(self, gates: Sequence[GateBound]) -> Iterator[GateEvidence]:
        """Yield the evidence for each gate on a judge, also on one without a win rate."""
        yield from compute_evidence(gates, self.rates, (TUNED,))
        problems = {each.judge.metric: each.problem for each in self.judges if each.problem}
        for index, gate in enumerate(gates):
            if gate.metric in problems:
                yield GateEvidence(gate=index, rows=0, undecided=problems[gate.metric])

    def of_rows(self) -> dict[int, list[JudgedRow]]:
        """Return what the judges said about each row, by its number."""
        found: dict[int, list[JudgedRow]] = defaultdict(list)
        for each in self.judges:
            for row, value in each.verdicts.values.items():
                found[row].append(
                    JudgedRow(
                        metric=each.judge.metric,
                        against=each.judge.against,
                        verdict="won" if value == WON else "lost" if value == LOST else "tied",
                        reason=each.verdicts.reasons.get(row, ""),
                    )
                )
        return found

    def shown(self) -> Iterator[ShownJudge]:
        """Yield each judge for the report."""
        scores = {score.metric: score for score in self.scores()}
        for each in self.judges:
            judge, score = each.judge, scores.get(each.judge.metric)
            yield ShownJudge(
                metric=judge.metric,
                against=judge.against,
                model=judge.model,
                endpoint=judge.endpoint or "",
                prompt=each.prompt,
                prompt_digest=digest_of(each.prompt.encode()),
                replies=each.replies_uri,
                win_rate=None if score is None else score.value,
                low=None if score is None else score.low,
                high=None if score is None else score.high,
                **asdict(each.verdicts.counts),
            )

    def findings(self) -> Iterator[CheckFinding]:
        """Yield why judges have no win rate."""
        for each in self.judges:
            if each.problem:
                yield CheckFinding(check="Judge", veto=False, message=each.problem[:MAX_MESSAGE_CHARACTERS])
