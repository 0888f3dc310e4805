# SPDX-License-Identifier: Apache-2.0
"""What the judges of an evaluation said, as parts of its result."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from finetune_trainer.contract.evaluation import CheckFinding, GateBound, GateEvidence
from finetune_trainer.contract.own_metrics import Judge
from finetune_trainer.contract.results import Score
from finetune_trainer.evaluate.estimates import TUNED
from finetune_trainer.evaluate.evidence import evidence_for, score_of
from finetune_trainer.evaluate.judge.verdicts import LOST, WON, RowVerdicts
from finetune_trainer.evaluate.judge.winrates import WinRates
from finetune_trainer.evaluate.subjects.optional import MAX_MESSAGE_CHARACTERS
from finetune_trainer.manifest import digest_of
from finetune_trainer.report.evaluation.facts import JudgedRow, ShownJudge
from finetune_trainer.statistics.groups import Groups


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
            yield score_of(metric, TUNED, self.rates)

    def evidence(self, gates: Sequence[GateBound]) -> Iterator[GateEvidence]:
        """Yield the evidence for each gate on a judge, also on one without a win rate."""
        yield from evidence_for(gates, self.rates, (TUNED,))
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
