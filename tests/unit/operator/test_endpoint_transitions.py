# SPDX-License-Identifier: Apache-2.0
"""The rollout's state machine: its table, a pass for each row of it, and the table of it in the docs."""

from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.manifests.revision import Revision
from finetune_operator.plan import Manifest, Plan
from finetune_operator.reconcile.inferencedeployment.revision.revision_states import (
    STATES,
    TRANSITIONS,
    Action,
    Observation,
    State,
    spec_hash,
    transition,
)
from finetune_operator.reconcile.inferencedeployment.revision.targets import resolve, wanted_revision
from finetune_operator.reconcile.inferencedeployment.rollout.observation import state_of
from finetune_operator.reconcile.inferencedeployment.rollout.rollout_context import RolloutContext
from tests.unit.operator.endpoints import (
    EndpointCluster,
    broken_pod,
    checkpoint,
    crashed_pod,
    endpoint,
    profile,
    serving,
    serving_pod,
    unscheduled_pod,
)
from tests.unit.operator.test_endpoint_rolloutlimit import other

OF_OTHERS: Final = (Observation.STANDBY, Observation.RESTORED, Observation.UNWANTED)
"""Observations about a revision that is not wanted."""
ALL_REPLICAS: Final = {
    ("Canary", Observation.READY),
    ("Canary", Observation.BAKES),
    ("Preview", Observation.DWELLS),
}
"""Combinations in which the wanted revision of a canary has all replicas."""
IN_STEPS: Final = (
    Observation.UNACHIEVABLE,
    Observation.DWELLS,
    Observation.PAUSES,
    Observation.UNDECIDED,
    Observation.STEPS,
    Observation.RETURNING_TRAFFIC,
)
WITHIN_STEPS: Final = (Observation.PAUSES, Observation.UNDECIDED, Observation.STEPS)
"""Observations about a revision that has the weight of its step."""
BEFORE_START: Final = (
    Observation.UNPROVABLE,
    Observation.NO_SLOT,
    Observation.OCCUPIED,
    Observation.NO_CAPACITY,
    Observation.PREVIEWS,
)
IMPOSSIBLE: Final = {
    *product(["Live", "Baking"], (*IN_STEPS, *BEFORE_START)),
    *product(["Live"], (Observation.ABORTED, Observation.PAUSED, Observation.BAKES)),
    *product(["Preview"], (Observation.OCCUPIED, Observation.NO_CAPACITY)),
    *product(["Canary"], (Observation.OCCUPIED, Observation.PREVIEWS)),
    *product(set(STATES) - {"Canary", "Failed", "RolledBack"}, WITHIN_STEPS),
    *product(set(STATES) - {"Failed", "RolledBack"}, [Observation.RETURNING_TRAFFIC]),
    *product(["Retired", "Standby"], set(Observation) - {*OF_OTHERS}),
    *product(set(STATES) - {"Live", "Baking"}, [Observation.STANDBY]),
    *product(set(STATES) - {"Standby", "Baking"}, [Observation.RESTORED]),
}
TABLE: Final = """
UNPROVABLE:
  Pending -> =, POSTPONE
  RollingOut -> =, POSTPONE
  WaitingForCapacity -> =, POSTPONE
  Preview -> =, POSTPONE
  Canary -> =, POSTPONE
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
UNACHIEVABLE:
  Pending -> =, REFUSE
  RollingOut -> =, REFUSE
  WaitingForCapacity -> =, REFUSE
  Preview -> =, REFUSE
  Canary -> =, REFUSE
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
ABORTED:
  Pending -> RolledBack, ABORT
  RollingOut -> RolledBack, ABORT
  WaitingForCapacity -> RolledBack, ABORT
  Preview -> RolledBack, ABORT
  Canary -> RolledBack, ABORT
  Baking -> RolledBack, ABORT
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
RETURNING_TRAFFIC:
  Failed -> =, RETAIN_TRAFFIC
  RolledBack -> =, RETAIN_TRAFFIC
PAUSED:
  Pending -> =, HOLD
  RollingOut -> =, HOLD
  WaitingForCapacity -> =, HOLD
  Preview -> =, HOLD
  Canary -> =, HOLD
  Baking -> =, HOLD
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
NO_SLOT:
  Pending -> =, QUEUE
  RollingOut -> =, QUEUE
  WaitingForCapacity -> =, QUEUE
  Preview -> =, QUEUE
  Canary -> =, QUEUE
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
OCCUPIED:
  Pending -> RollingOut, SCALE_DOWN_OTHERS
  RollingOut -> =, SCALE_DOWN_OTHERS
  WaitingForCapacity -> RollingOut, SCALE_DOWN_OTHERS
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
ABSENT:
  Pending -> RollingOut, START
  RollingOut -> =, START
  WaitingForCapacity -> RollingOut, START
  Preview -> RollingOut, START
  Canary -> RollingOut, START
  Baking -> RollingOut, START
  Live -> RollingOut, START
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
NO_CAPACITY:
  Pending -> WaitingForCapacity, WAIT_FOR_CAPACITY
  RollingOut -> WaitingForCapacity, WAIT_FOR_CAPACITY
  WaitingForCapacity -> =, WAIT_FOR_CAPACITY
  Canary -> =, WAIT_FOR_CAPACITY
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
PREVIEWS:
  Pending -> Preview, PREVIEW
  RollingOut -> Preview, PREVIEW
  WaitingForCapacity -> Preview, PREVIEW
  Preview -> =, PREVIEW
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
DWELLS:
  Pending -> Canary, DWELL
  RollingOut -> Canary, DWELL
  WaitingForCapacity -> Canary, DWELL
  Preview -> Canary, DWELL
  Canary -> =, DWELL
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
PAUSES:
  Canary -> =, AWAIT_DECISION
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
UNDECIDED:
  Canary -> =, AWAIT_DECISION
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
STEPS:
  Canary -> =, STEP
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
BAKES:
  Pending -> Baking, BAKE
  RollingOut -> Baking, BAKE
  WaitingForCapacity -> Baking, BAKE
  Preview -> Baking, BAKE
  Canary -> Baking, BAKE
  Baking -> =, BAKE
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
NOT_READY:
  Pending -> RollingOut, WAIT
  RollingOut -> =, WAIT
  WaitingForCapacity -> RollingOut, WAIT
  Preview -> =, WAIT
  Canary -> =, WAIT
  Baking -> =, REPORT
  Live -> =, REPORT
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
READY:
  Pending -> Live, SERVE
  RollingOut -> Live, SERVE
  WaitingForCapacity -> Live, SERVE
  Preview -> Live, SERVE
  Canary -> Live, SERVE
  Baking -> Live, SERVE
  Live -> =, SERVE
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
BROKEN:
  Pending -> Failed, FAIL
  RollingOut -> Failed, FAIL
  WaitingForCapacity -> Failed, FAIL
  Preview -> Failed, FAIL
  Canary -> RolledBack, RETURN
  Baking -> RolledBack, RETURN
  Live -> =, REPORT
  Failed -> =, ROLL_BACK
  RolledBack -> =, ROLL_BACK
STANDBY:
  Live -> Standby, RETAIN
  Baking -> Standby, RETAIN
RESTORED:
  Standby -> Live, RETAIN
  Baking -> Live, RETAIN
UNWANTED:
  Pending -> Retired, REMOVE
  RollingOut -> Retired, REMOVE
  WaitingForCapacity -> Retired, REMOVE
  Preview -> Retired, REMOVE
  Canary -> Retired, REMOVE
  Baking -> Retired, REMOVE
  Live -> Retired, REMOVE
  Standby -> Retired, REMOVE
  Retired -> =, REMOVE
  Failed -> =, REMOVE
  RolledBack -> =, REMOVE
"""
ROLLOUTS_PAGE: Final = Path(__file__).parents[3] / "docs" / "rollouts.md"
BEGINS_AGAIN: Final[dict[State, str]] = {
    "Standby": "is wanted again",
    "Retired": "is wanted again",
    "Failed": "is tried again after an edit or a decision, or because nothing else serves",
    "RolledBack": "is tried again after an edit or a decision, or because nothing else serves",
}


def table() -> str:
    """All transitions; a state that stays the same is shown as `=`."""
    lines = {seen: f"{seen.name}:" for seen in Observation}
    for (state, seen), (following, action) in TRANSITIONS.items():
        lines[seen] += f"\n  {state} -> {'=' if following == state else following}, {action.name}"
    return "".join(f"{line}\n" for line in lines.values())


def test_every_transition_is_the_reviewed_one() -> None:
    assert table() == TABLE.lstrip("\n"), f"the reviewed table differs from:\n{table()}"


def test_the_table_has_a_row_for_all_that_can_be_seen() -> None:
    assert set(product(STATES, Observation)) - IMPOSSIBLE == set(TRANSITIONS)


def test_a_state_that_only_a_newer_release_knows_begins_again() -> None:
    newer: Any = "Shadow"
    never = {
        *WITHIN_STEPS,
        Observation.RETURNING_TRAFFIC,
        Observation.STANDBY,
        Observation.RESTORED,
    }
    for seen in set(Observation) - never:
        assert transition(newer, seen) == transition("Pending", seen)


def strategy_for(state: State, seen: Observation, revision: str) -> dict[str, Any]:
    """A strategy by which the wanted revision can be in this state and have this observation."""
    strategy: dict[str, Any] = {}
    if state == "Preview" or seen is Observation.PREVIEWS:
        strategy["type"] = "BlueGreen"
    if state == "Canary" or seen in IN_STEPS:
        weight = 10 if seen is Observation.UNACHIEVABLE else 50
        steps = [{"setWeight": weight}, {"pause": {"seconds": 600}}]
        strategy |= {"type": "Canary", "canary": {"steps": steps}}
    if seen is Observation.PAUSES:
        strategy["canary"] = {"steps": [{"setWeight": 50}, {"pause": {}}]}
    if seen is Observation.UNDECIDED:
        strategy["canary"] = {"steps": [{"setWeight": 50}, {"analysis": {}}]}
        strategy["analysis"] = {"gates": [{"metric": "error_rate", "max": 0.05}]}
    if state == "Baking" or seen is Observation.BAKES:
        strategy["bakeSeconds"] = 600
    if seen is Observation.OCCUPIED:
        strategy["type"] = "Recreate"
    if seen is Observation.PAUSED:
        strategy["paused"] = True
    promoted = {
        ("Preview", Observation.READY),
        ("Preview", Observation.BAKES),
        ("Baking", Observation.READY),
        ("Canary", Observation.READY),
        ("Canary", Observation.BAKES),
    }
    if seen is Observation.ABORTED or (state, seen) in promoted:
        verdict = "Abort" if seen is Observation.ABORTED else "Promote"
        strategy["decision"] = {"revision": revision, "verdict": verdict}
    return strategy


def wanting(state: State, seen: Observation) -> tuple[EndpointCluster, str, str]:
    """An endpoint whose wanted revision has this state and observation; that revision and the other one."""
    cluster, old = serving()
    cluster.put(checkpoint("second", "2", promoted=10))
    cluster.settle()
    (new,) = set(cluster.deployments) - {old}
    if state in {"Live", "Baking", "Canary"} or seen is Observation.RETURNING_TRAFFIC:
        before: State = "Canary" if seen is Observation.RETURNING_TRAFFIC else state
        cluster.edit(strategy=strategy_for(before, Observation.NOT_READY, new), replicas=2)
        for _ in range(2):
            for name in cluster.deployments:
                cluster.make_ready(name)
            cluster.settle()
    strategy = strategy_for(state, seen, new)
    cluster.edit(strategy=strategy, replicas=2 if strategy.get("type") == "Canary" else 1)
    if seen is Observation.UNPROVABLE:
        cluster.edit(replicas=0)
    if seen is Observation.NO_SLOT:
        cluster.put(profile(limits={"concurrentRollouts": 1}))
        cluster.put(other())
    show(cluster, state, seen, old, new)
    steps = {
        **dict.fromkeys((Observation.READY, Observation.BAKES), 2),
        **dict.fromkeys((Observation.DWELLS, Observation.PAUSES, Observation.UNDECIDED), 1),
    }
    record(cluster, new, state, steps.get(seen, 0) if state == "Canary" else None)
    if (state, seen) == ("Canary", Observation.UNDECIDED):
        fail_analysis(cluster, new)
    return cluster, new, old


def fail_analysis(cluster: EndpointCluster, revision: str) -> None:
    """Let the Job of the step's analysis of the revision fail, so that it is inconclusive."""
    cluster.put(serving_pod(revision, podIP="10.0.0.3", conditions=[{"type": "Ready", "status": "True"}]))
    cluster.reconcile()
    ((_, job),) = cluster.cluster.of("Job").items()
    since = (cluster.cluster.now - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", "lastTransitionTime": since}]}


def show(cluster: EndpointCluster, state: State, seen: Observation, old: str, new: str) -> None:
    """Make the pods and Deployments of the revisions as the observation needs them."""
    match seen:
        case Observation.READY | Observation.BAKES | Observation.DWELLS if (state, seen) in ALL_REPLICAS:
            cluster.scale(new, 2)
            cluster.make_ready(new)
        case Observation.READY | Observation.PREVIEWS | Observation.BAKES | Observation.DWELLS:
            cluster.make_ready(new)
        case Observation.ABORTED if state == "Canary":
            cluster.scale(old, 2)
            cluster.make_ready(old)
        case (
            Observation.STEPS
            | Observation.PAUSES
            | Observation.UNDECIDED
            | Observation.RETURNING_TRAFFIC
            | Observation.PAUSED
            | Observation.ABORTED
        ):
            pass
        case Observation.BROKEN:
            if state in {"Baking", "Canary"}:
                cluster.put(crashed_pod(new))
            elif state == "WaitingForCapacity":
                cluster.put(broken_pod(new))
            else:
                cluster.miss_deadline(new)
        case Observation.OCCUPIED:
            cluster.put(serving_pod(old))
            del cluster.deployments[new]
        case Observation.NO_CAPACITY:
            cluster.put(unscheduled_pod(new))
            cluster.deployments[new] = {**cluster.deployments[new], "status": {}}
        case Observation.NOT_READY:
            cluster.deployments[new] = {**cluster.deployments[new], "status": {}}
        case _:
            del cluster.deployments[new]
            if state == "Baking":
                del cluster.deployments[old]


def record(cluster: EndpointCluster, name: str, state: State, step: int | None) -> None:
    """Write the revision's state to the status, as earlier passes do."""
    raw = cluster.endpoint.to_dict()
    entries = [entry for entry in raw["status"]["revisions"] if entry["name"] != name]
    if state != "Pending":
        tried = spec_hash(cluster.endpoint) if state in {"RollingOut", "Failed", "RolledBack"} else ""
        entries.insert(0, {"name": name, "state": state, "specHash": tried, "message": "out of memory"})
        if step is not None:
            entries[0]["step"] = step
        if state in {"Baking", "Canary"}:
            entries[0]["since"] = cluster.cluster.now.isoformat()
    raw["status"]["revisions"] = entries
    cluster.endpoint = InferenceDeployment.model_validate(raw)


def condition_of(plan: Plan) -> tuple[str, str]:
    """Type and reason of the condition that the pass writes."""
    assert plan.status is not None
    states = {"Ready", "Reconciling", "Stalled", "Suspended"}
    true = [each for each in plan.status["conditions"] if each["type"] in states and each["status"] == "True"]
    (condition,) = true
    return condition["type"], condition["reason"]


SAYS: Final = {
    Action.POSTPONE: ("Ready", "ScaledToZero"),
    Action.REFUSE: ("Stalled", "WeightNotAchievable"),
    Action.DWELL: ("Reconciling", "Canary"),
    Action.AWAIT_DECISION: ("Suspended", "AwaitingDecision"),
    Action.STEP: ("Reconciling", "Canary"),
    Action.ABORT: ("Stalled", "RolledBack"),
    Action.RETAIN_TRAFFIC: ("Reconciling", "RollingOut"),
    Action.HOLD: ("Suspended", "Paused"),
    Action.QUEUE: ("Reconciling", "Queued"),
    Action.SCALE_DOWN_OTHERS: ("Reconciling", "RollingOut"),
    Action.START: ("Reconciling", "RollingOut"),
    Action.WAIT_FOR_CAPACITY: ("Reconciling", "NoCapacityForSurge"),
    Action.WAIT: ("Reconciling", "RollingOut"),
    Action.SERVE: ("Ready", "Serving"),
    Action.PREVIEW: ("Suspended", "AwaitingDecision"),
    Action.BAKE: ("Ready", "Baking"),
    Action.RETURN: ("Stalled", "RolledBack"),
    Action.REPORT: ("Reconciling", "Scaling"),
    Action.FAIL: ("Stalled", "RolloutFailed"),
    Action.ROLL_BACK: ("Stalled", "RolloutFailed"),
}


def view(recorded: str, tried: str, routed: str) -> RolloutContext:
    """The view of an endpoint whose Service selects `routed`, the wanted or another revision."""
    cluster = EndpointCluster(checkpoint("first", "1"))
    targets = resolve(cluster.endpoint, cluster.snapshot().checkpoints)
    wanted = wanted_revision(cluster.endpoint, targets, cluster.snapshot())
    assert isinstance(wanted, Revision)
    names = {"wanted": wanted.name, "another": "desk-another"}
    selector = {"finetune.dev/run": "endpoint-uid", "finetune.dev/revision": names[routed]}
    cluster.put_child({"kind": "Service", "metadata": {"name": "desk"}, "spec": {"selector": selector}})
    cluster.put_child({"kind": "Deployment", "metadata": {"name": names[routed]}, "spec": {}})
    cluster.put(endpoint({"revisions": [{"name": wanted.name, "state": recorded, "specHash": tried}]}))
    return RolloutContext(cluster.endpoint, cluster.snapshot(), targets, wanted)


@pytest.mark.parametrize(
    ("recorded", "is_edited", "routed", "state"),
    [
        ("RollingOut", False, "another", "RollingOut"),
        ("RollingOut", True, "wanted", "RollingOut"),
        ("Live", False, "wanted", "Live"),
        ("Live", False, "another", "Pending"),
        ("Failed", False, "another", "Failed"),
        ("Failed", True, "another", "Pending"),
        ("Failed", False, "wanted", "Pending"),
        ("Retired", False, "another", "Pending"),
    ],
)
def test_a_revision_that_is_wanted_again_begins_again(
    recorded: str, routed: str, state: State, *, is_edited: bool
) -> None:
    tried = "another" if is_edited else spec_hash(endpoint())
    assert state_of(view(recorded, tried, routed)) == state


def kinds(manifests: list[Manifest]) -> list[tuple[str, str]]:
    return [(each["kind"], each["metadata"]["name"]) for each in manifests]


@pytest.mark.parametrize(
    ("state", "seen"),
    [pair for pair in TRANSITIONS if pair[1] not in OF_OTHERS],
    ids=lambda value: value.name if isinstance(value, Observation) else value,
)
def test_a_pass_does_what_the_table_says(state: State, seen: Observation) -> None:
    cluster, wanted, other_one = wanting(state, seen)
    log_before = len(cluster.log)
    existed = wanted in cluster.deployments
    plan = cluster.reconcile()
    following, action = TRANSITIONS[state, seen]
    rolled_back = state == "RolledBack" and action is Action.ROLL_BACK
    assert condition_of(plan) == (("Stalled", "RolledBack") if rolled_back else SAYS[action])
    states = {each.name: each.state for each in cluster.endpoint.status.revisions}
    assert states.get(wanted, "Pending") == following
    assert (("Deployment", wanted) in kinds([each.manifest for each in plan.create])) == (
        action is Action.START
    )
    is_removed = action is Action.ROLL_BACK or (action is Action.ABORT and state not in {"Baking", "Canary"})
    removed = [wanted] if is_removed and existed else []
    if state == "Baking" and action is Action.SERVE:
        removed = [other_one]
    assert kinds([each.manifest for each in plan.delete]) == [("Deployment", name) for name in removed]
    split = {wanted: 50, other_one: 50}
    shares = state == "Canary" or seen is Observation.RETURNING_TRAFFIC
    before = split if shares else {wanted if state in {"Live", "Baking"} else other_one: 100}
    returns = {Action.POSTPONE, Action.REFUSE, Action.START, Action.QUEUE, Action.ABORT, Action.RETURN}
    after = before
    if action in {Action.SERVE, Action.BAKE}:
        after = {wanted: 100}
    elif action is Action.DWELL:
        after = split
    elif action in returns and state in {"Canary", "Baking"} and other_one in cluster.deployments:
        after = {other_one: 100}
    assert ("apply Service desk" in cluster.log[log_before:]) == (before != after)
    previewed = ("Service", "desk-preview") in kinds([each.manifest for each in plan.create])
    assert previewed == (following == "Preview" and action not in {Action.POSTPONE, Action.REFUSE})
    weights = {each.name: each.weight for each in cluster.endpoint.status.revisions if each.weight}
    assert weights == {name: weight for name, weight in after.items() if name in states}


@pytest.mark.parametrize("state", ["Pending", "RollingOut"])
def test_a_postponed_revision_loses_its_deployment(state: State) -> None:
    cluster, wanted, serves = wanting(state, Observation.NOT_READY)
    cluster.edit(replicas=0)
    plan = cluster.reconcile()
    assert kinds([each.manifest for each in plan.delete]) == [("Deployment", wanted)]
    states = {each.name: each.state for each in cluster.endpoint.status.revisions}
    assert states == {serves: "Live"} | ({wanted: "Retired"} if state == "RollingOut" else {})


def next_states() -> str:
    """The transitions from one state to another as the table of the docs, grouped by event and next state."""
    rows: dict[tuple[State, str], list[State]] = {}
    for (state, seen), following in TRANSITIONS.items():
        if state != following.state:
            rows.setdefault((following.state, seen.value), []).append(state)
    for state, why in BEGINS_AGAIN.items():
        rows.setdefault(("Pending", why), []).append(state)
    lines = ["| a revision that … | in the state | becomes |", "|---|---|---|"]
    for (becomes, event), before in sorted(rows.items(), key=lambda row: STATES.index(row[0][0])):
        states = ", ".join(f"`{state}`" for state in sorted(before, key=STATES.index))
        lines.append(f"| {event} | {states} | `{becomes}` |")
    return "\n".join(lines)


def test_the_table_in_the_docs_has_every_change_of_state() -> None:
    assert f"\n\n{next_states()}\n\n" in ROLLOUTS_PAGE.read_text(), (
        f"docs/rollouts.md needs this table:\n{next_states()}"
    )
