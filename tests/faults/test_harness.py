"""The matrix finds what it is there for: an operator that breaks one of its rules does not pass."""

from pathlib import Path

import pytest

from tests.faults.faults import DisturbedWrite, Fault, LostEvent
from tests.faults.laboratory import Verdicts
from tests.faults.matrix import IMPATIENT
from tests.faults.releases import Edit, release
from tests.faults.trials import Trial

PATIENCE_SECONDS = 60.0

DRAWS_NAMES = Edit(
    "build/labels.py",
    "short_hash(owner.uid, stage, *distinguish)",
    "short_hash(owner.uid, stage, *distinguish, str(__import__('os').getpid()))",
)
CREATES_FOR_WHAT_IS_GONE = Edit(
    "engine/executor.py", "            await self.confirm(primary)\n", "            pass\n"
)
PASSES_OVER_A_FAILED_CREATE = Edit(
    "engine/executor.py",
    "        except AlreadyExists:\n"
    "            existing = await self._live(manifest)\n"
    "            if existing is None:\n"
    "                raise\n",
    "        except Exception:\n"
    "            existing = await self._live(manifest)\n"
    "            if existing is None:\n"
    "                return\n",
)
DOES_NOT_LOOK_AGAIN = Edit(
    "engine/worker.py",
    'looking again", _name(key), error)\n            self._queue.retry(key)\n',
    'looking again", _name(key), error)\n',
)
NEVER_LISTS_AGAIN = Edit(
    "engine/reflector.py",
    '                resource_version = ""\n                wait',
    "                wait",
)


def trial(disturbance: DisturbedWrite | LostEvent, *edits: Edit) -> Trial:
    return Trial(disturbance, edits, PATIENCE_SECONDS)


BROKEN = [
    pytest.param(
        trial(DisturbedWrite("POST jobs routing-train", Fault.KILLED_AFTER), DRAWS_NAMES),
        "the second run has no train Job|the objects are those|not the same",
        id="each process draws the names of its Jobs anew",
    ),
    pytest.param(
        trial(LostEvent("inferencedeployments support deleted"), CREATES_FOR_WHAT_IS_GONE),
        "no child is left|not the same",
        id="nobody asks whether what a thing is created for still exists",
    ),
    pytest.param(
        trial(DisturbedWrite("POST checkpoints routing-40", Fault.INTERNAL), PASSES_OVER_A_FAILED_CREATE),
        "routing is done|not the same",
        id="a create that failed is passed over",
    ),
    pytest.param(
        trial(DisturbedWrite("POST jobs routing-preflight", Fault.CONFLICT), DOES_NOT_LOOK_AGAIN),
        "routing is done",
        id="after a conflict nobody looks again",
    ),
    pytest.param(
        trial(
            LostEvent("jobs routing-train Complete=True/CompletionsReached"), NEVER_LISTS_AGAIN, *IMPATIENT
        ),
        "routing is done",
        id="what no watch has told is never found",
    ),
]


@pytest.mark.full
@pytest.mark.parametrize(("trial", "shows"), BROKEN)
def test_a_broken_rule_is_found(trial: Trial, shows: str, verdicts: Verdicts) -> None:
    with pytest.raises(AssertionError, match=shows):
        verdicts[trial].result()


@pytest.mark.parametrize(("trial", "shows"), BROKEN)
def test_the_rules_are_where_they_are_broken(trial: Trial, shows: str, tmp_path: Path) -> None:
    """Fails at once where code has changed, and not only in `make test-full`."""
    assert release(tmp_path, trial.edits)
