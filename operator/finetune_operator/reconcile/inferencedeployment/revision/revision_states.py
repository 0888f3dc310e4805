# SPDX-License-Identifier: Apache-2.0
"""The rollout as a state machine: states of revisions, the table of transitions, and the recorded states.

A pass takes the state of the wanted revision, reduces what it reads to one `Observation`, and looks up the
transition. Revisions that are no longer wanted use the same table. A test compares it with the table in
docs/rollouts.md. The status of an endpoint lists the states of its revisions.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import Enum
from itertools import product
from typing import Final, Literal, NamedTuple, get_args

from finetune_operator.api.inference_deployment import (
    MAX_HISTORY_MODELS,
    MAX_REVISIONS,
    InferenceDeployment,
    RevisionState,
    RevisionStatus,
)
from finetune_operator.manifests.labels import short_hash
from finetune_operator.plan import drop_empty

State = Literal["Pending"] | RevisionState
"""State of a revision, as in `status.revisions[].state`. RollingOut: its pods are starting. Pending is not
written to the status: the revision has not started, or will be retried."""


class Observation(Enum):
    """An observation about a revision. The value completes a sentence about the revision."""

    UNPROVABLE = "has never been ready, and spec.replicas is 0"
    UNACHIEVABLE = "has a step whose weight spec.replicas cannot achieve"
    ABORTED = "is aborted by spec.strategy.decision"
    RETURNING_TRAFFIC = "has requests, for which the previous one does not have its replicas yet"
    PAUSED = "may not proceed, because spec.strategy.paused is true"
    NO_SLOT = "has no Deployment, and other endpoints use up limits.concurrentRollouts"
    OCCUPIED = "starts when the pods of the other revisions have ended"
    ABSENT = "has no Deployment"
    NO_CAPACITY = "has pods that no node or quota has room for"
    PREVIEWS = "is ready, and waits for a decision or the end of its preview"
    DWELLS = "is ready, and its step has not ended"
    PAUSES = "is ready, and its step pauses until a decision"
    UNDECIDED = "is ready, and the analysis of its step was inconclusive"
    STEPS = "has ended its step"
    BAKES = "is ready, and has not served for bakeSeconds"
    NOT_READY = "has replicas that are not ready"
    READY = "has all replicas ready"
    BROKEN = "cannot start, or not before its deadline"
    STANDBY = "gets no more requests, and is kept while the next one bakes"
    RESTORED = "serves, because a later one was rolled back or has replaced its bake"
    UNWANTED = "is not wanted, and gets no more requests"


class Action(Enum):
    """An action of a pass. `rollout_actions.py` has a function for each action except RETAIN and REMOVE."""

    POSTPONE = "wait for the first replica"
    REFUSE = "wait for other replicas or steps"
    ABORT = "delete its Deployment, because a person decided so"
    RETAIN_TRAFFIC = "keep its requests until the previous one has the replicas for them"
    HOLD = "wait until the pause ends"
    QUEUE = "wait for a slot"
    SCALE_DOWN_OTHERS = "end the pods of the other revisions"
    START = "create its Deployment"
    WAIT_FOR_CAPACITY = "wait for a node or quota with room for its pods"
    WAIT = "wait for its pods"
    SERVE = "route all requests to it"
    PREVIEW = "point the preview Service at it"
    DWELL = "give it the weight of its step"
    AWAIT_DECISION = "keep the weight of its step until a person decides"
    STEP = "take the next step"
    BAKE = "route all requests to it, and keep the previous one"
    RETURN = "route all requests to the previous one"
    RETAIN = "keep its Deployment"
    REPORT = "report the replicas that are missing"
    FAIL = "report why, and keep what serves"
    ROLL_BACK = "delete its Deployment, and keep what serves"
    REMOVE = "delete its Deployment once the requests have moved"


class Transition(NamedTuple):
    """The next state and the action."""

    state: State
    action: Action


Row = tuple[Iterable[State], Iterable[Observation], State | None, Action]
"""States, observations, the next state (None: unchanged), the action."""

STATES: Final[tuple[State, ...]] = ("Pending", *get_args(RevisionState))
UNVERIFIED_STATES: Final[tuple[State, ...]] = ("Pending", "RollingOut", "WaitingForCapacity")
PROGRESSING: Final[tuple[State, ...]] = (*UNVERIFIED_STATES, "Preview", "Canary")
ACTIVE: Final[tuple[State, ...]] = (*PROGRESSING, "Baking", "Live")
REJECTED_STATES: Final[tuple[State, ...]] = ("Failed", "RolledBack")
ENDED: Final[tuple[State, ...]] = ("Retired", *REJECTED_STATES)
OF_WANTED: Final = (
    Observation.UNPROVABLE,
    Observation.UNACHIEVABLE,
    Observation.ABORTED,
    Observation.PAUSED,
    Observation.NO_SLOT,
    Observation.OCCUPIED,
    Observation.ABSENT,
    Observation.NO_CAPACITY,
    Observation.PREVIEWS,
    Observation.DWELLS,
    Observation.PAUSES,
    Observation.UNDECIDED,
    Observation.STEPS,
    Observation.BAKES,
    Observation.NOT_READY,
    Observation.READY,
    Observation.BROKEN,
)

ROWS: Final[tuple[Row, ...]] = (
    (PROGRESSING, [Observation.UNPROVABLE], None, Action.POSTPONE),
    (PROGRESSING, [Observation.UNACHIEVABLE], None, Action.REFUSE),
    ((*PROGRESSING, "Baking"), [Observation.ABORTED], "RolledBack", Action.ABORT),
    ((*PROGRESSING, "Baking"), [Observation.PAUSED], None, Action.HOLD),
    (PROGRESSING, [Observation.NO_SLOT], None, Action.QUEUE),
    (UNVERIFIED_STATES, [Observation.OCCUPIED], "RollingOut", Action.SCALE_DOWN_OTHERS),
    (ACTIVE, [Observation.ABSENT], "RollingOut", Action.START),
    (UNVERIFIED_STATES, [Observation.NO_CAPACITY], "WaitingForCapacity", Action.WAIT_FOR_CAPACITY),
    (UNVERIFIED_STATES, [Observation.NOT_READY], "RollingOut", Action.WAIT),
    (["Preview", "Canary"], [Observation.NOT_READY], None, Action.WAIT),
    (["Canary"], [Observation.NO_CAPACITY], None, Action.WAIT_FOR_CAPACITY),
    ((*UNVERIFIED_STATES, "Preview"), [Observation.BROKEN], "Failed", Action.FAIL),
    (PROGRESSING, [Observation.DWELLS], "Canary", Action.DWELL),
    (["Canary"], [Observation.PAUSES, Observation.UNDECIDED], None, Action.AWAIT_DECISION),
    (["Canary"], [Observation.STEPS], None, Action.STEP),
    ((*UNVERIFIED_STATES, "Preview"), [Observation.PREVIEWS], "Preview", Action.PREVIEW),
    ((*PROGRESSING, "Baking"), [Observation.BAKES], "Baking", Action.BAKE),
    (ACTIVE, [Observation.READY], "Live", Action.SERVE),
    (["Baking"], [Observation.NOT_READY], None, Action.REPORT),
    (["Canary", "Baking"], [Observation.BROKEN], "RolledBack", Action.RETURN),
    (["Live"], [Observation.NOT_READY, Observation.BROKEN], None, Action.REPORT),
    (REJECTED_STATES, OF_WANTED, None, Action.ROLL_BACK),
    (REJECTED_STATES, [Observation.RETURNING_TRAFFIC], None, Action.RETAIN_TRAFFIC),
    (["Live", "Baking"], [Observation.STANDBY], "Standby", Action.RETAIN),
    (["Standby", "Baking"], [Observation.RESTORED], "Live", Action.RETAIN),
    ((*ACTIVE, "Standby"), [Observation.UNWANTED], "Retired", Action.REMOVE),
    (ENDED, [Observation.UNWANTED], None, Action.REMOVE),
)


def _table(rows: Iterable[Row]) -> dict[tuple[State, Observation], Transition]:
    table: dict[tuple[State, Observation], Transition] = {}
    for states, observations, target, action in rows:
        for state, observation in product(states, observations):
            if (state, observation) in table:
                raise ValueError(f"two rows for {state} and {observation.name}")
            table[state, observation] = Transition(target or state, action)
    return table


TRANSITIONS: Final[Mapping[tuple[State, Observation], Transition]] = _table(ROWS)
"""All possible combinations. A Live revision has been ready and needs no slot. A Retired one that is wanted
again counts as Pending."""


def transition(state: State, observation: Observation) -> Transition:
    """Look up the next state and the action. A state that only a newer release has counts as Pending.

    Raises:
        KeyError: the observation is not possible in this state.
    """
    known = state if state in STATES else "Pending"
    return TRANSITIONS[known, observation]


NO_EDITS: Final[dict[str, bool | set[str]]] = {
    "replicas": True,
    "network_policy": True,
    "traffic": True,
    "strategy": {"paused", "decision"},
}
"""Fields of an endpoint's spec whose edit fixes no revision."""


def spec_hash(endpoint: InferenceDeployment) -> str:
    """Hash that changes with each edit of the spec that may fix a failed revision.

    Scaling, protection, routing, a pause and a decision do not count. A field counts only if it is set to
    something else than its default, so an upgrade is not an edit.
    """
    spec = endpoint.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=NO_EDITS)
    return short_hash(json.dumps(drop_empty(spec), sort_keys=True), length=16)


def find_revision(revisions: Iterable[RevisionStatus], name: str) -> RevisionStatus | None:
    """The entry of one revision; None if there is none."""
    return next((revision for revision in revisions if revision.name == name), None)


def with_entry(
    revisions: tuple[RevisionStatus, ...], entry: RevisionStatus, now: datetime
) -> tuple[RevisionStatus, ...]:
    """The list, newest first, with this entry. Its `since` is now, and `started_at` if a rollout begins.

    An entry with the same state, step and spec keeps its `since`, and gets the analysis. A revision that
    starts again is the newest.
    """
    old = find_revision(revisions, entry.name)
    if old is not None and _progress(old) == _progress(entry):
        if old.analysis == entry.analysis:
            return revisions
        measured = old.model_copy(update={"analysis": entry.analysis})
        return tuple(measured if revision is old else revision for revision in revisions)
    since = now.replace(microsecond=0)
    started_at: datetime | None = since
    if old is not None and (entry.state not in PROGRESSING or old.state in PROGRESSING):
        started_at = old.started_at
    entry = entry.model_copy(update={"since": since, "started_at": started_at})
    if old is not None and (entry.state in ENDED or old.state not in ENDED):
        listed = tuple(entry if revision.name == entry.name else revision for revision in revisions)
    else:
        listed = (entry, *(revision for revision in revisions if revision.name != entry.name))
    return _with_few_models(_newest(listed))


def _newest(revisions: tuple[RevisionStatus, ...]) -> tuple[RevisionStatus, ...]:
    """The list without its oldest entries. Revisions that get requests, or can get them back, stay listed."""
    old = [each.name for each in reversed(revisions) if not each.weight and each.state != "Standby"]
    dropped = set(old[: max(len(revisions) - MAX_REVISIONS, 0)])
    return tuple(each for each in revisions if each.name not in dropped)


def _with_few_models(revisions: tuple[RevisionStatus, ...]) -> tuple[RevisionStatus, ...]:
    """The list with at most MAX_HISTORY_MODELS models, those of the newest revisions."""
    total, kept = 0, []
    for revision in revisions:
        total += len(revision.models)
        kept.append(revision if total <= MAX_HISTORY_MODELS else revision.model_copy(update={"models": ()}))
    return tuple(kept)


def _progress(entry: RevisionStatus) -> tuple[str, int | None, str]:
    return entry.state, entry.step, entry.spec_hash


def with_weights(
    revisions: tuple[RevisionStatus, ...], weights: Mapping[str, int]
) -> tuple[RevisionStatus, ...]:
    """The list with each revision's percent of the requests; 0 for revisions that `weights` does not have."""
    return tuple(
        revision
        if revision.weight == weights.get(revision.name, 0)
        else revision.model_copy(update={"weight": weights.get(revision.name, 0)})
        for revision in revisions
    )
