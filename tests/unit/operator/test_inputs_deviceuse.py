# SPDX-License-Identifier: Apache-2.0
"""Which pods use devices, from when until when, and how long deleted ones stay known."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_operator.observe.poduse import PodUse, use_of
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.deviceuse import KEPT, DeviceUse

BEGIN = datetime(2030, 1, 2, 3, 0, tzinfo=UTC)
STAGE_POD = {"finetune.dev/stage": "train", "finetune.dev/devices": "4"}


def at(seconds: float) -> str:
    return (BEGIN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def running(start: float) -> Manifest:
    return {"state": {"running": {"startedAt": at(start)}}}


def terminated(start: float, end: float) -> Manifest:
    return {"state": {"terminated": {"startedAt": at(start), "finishedAt": at(end), "exitCode": 0}}}


EPOCH = "1970-01-01T00:00:00Z"


def not_started(end: float, reason: str = "StartError") -> Manifest:
    """What containerd reports of a container that it cannot start."""
    times = {"startedAt": EPOCH, "finishedAt": at(end)}
    return {"state": {"terminated": {**times, "exitCode": 128, "reason": reason}}}


WAITING: Manifest = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}}


def pod(
    *statuses: Manifest, labels: dict[str, str] = STAGE_POD, profile: str = "gpu", **more: Any
) -> Manifest:
    marks = {"finetune.dev/profile": profile, **labels}
    resources = {"requests": {"cpu": "2500m"}, "limits": {"nvidia.com/gpu": "2"}}
    metadata = {"name": "pod", "namespace": "team", "uid": "pod", "creationTimestamp": at(0)}
    return {
        "metadata": {**metadata, "labels": marks},
        "spec": {"containers": [{"name": "proxy"}, {"name": "engine", "resources": resources}]},
        "status": {"containerStatuses": list(statuses), **more},
    }


def span(found: PodUse | None) -> tuple[float, float | None] | None:
    if found is None:
        return None
    end = found.ended_at
    return (found.started_at - BEGIN).total_seconds(), None if end is None else (end - BEGIN).total_seconds()


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        pytest.param(pod(), None, id="no container yet"),
        pytest.param(pod({"state": {"waiting": {"reason": "ContainerCreating"}}}), None, id="waiting"),
        pytest.param(pod(running(5)), (5, None), id="running"),
        pytest.param(pod(running(60), initContainerStatuses=[terminated(5, 50)]), (5, None), id="fetched"),
        pytest.param(pod(terminated(5, 50), {"state": {"waiting": {}}}), (5, None), id="restarting"),
        pytest.param(pod(terminated(5, 50), running(7)), (5, None), id="with a sidecar that still runs"),
        pytest.param(pod(terminated(5, 50), terminated(7, 55), phase="Failed"), (5, 55), id="ended"),
        pytest.param(pod(running(5), phase="Failed"), (5, 5), id="ended at an unknown time"),
        pytest.param(pod(running(-90)), (0, None), id="on a node whose clock is behind"),
        pytest.param(pod(terminated(-90, -30), phase="Failed"), (0, 0), id="ended on such a node"),
        pytest.param(pod(not_started(9), phase="Failed"), (9, 9), id="not started"),
        pytest.param(pod(not_started(9, "Error"), phase="Failed"), (9, 9), id="without a start"),
        pytest.param(pod(initContainerStatuses=[not_started(9)], labels={}), (9, None), id="fetch"),
        pytest.param(pod(running(5), labels={"finetune.dev/stage": "preflight"}), None, id="without devices"),
        pytest.param(pod(running(5), labels={**STAGE_POD, "finetune.dev/devices": "-1"}), None, id="forged"),
        pytest.param(
            pod(running(5), labels={**STAGE_POD, "finetune.dev/devices": "9" * 30}), None, id="huge"
        ),
        pytest.param(pod(running(5), profile=""), None, id="without a profile"),
        pytest.param(pod(running(5), labels={}), (5, None), id="of an endpoint"),
    ],
)
def test_a_pod_uses_devices_from_its_first_container_to_its_end(
    manifest: Manifest, expected: tuple[float, float | None] | None
) -> None:
    assert span(use_of(manifest)) == expected


def test_the_devices_of_a_stage_are_labeled_and_those_of_an_endpoint_are_requested_by_its_engine() -> None:
    stage, endpoint = use_of(pod(running(5))), use_of(pod(running(5), labels={}))
    assert stage is not None
    assert endpoint is not None
    assert [stage.devices(name) for name in ("nvidia.com/gpu", "cpu")] == [4, 4]
    assert [endpoint.devices(name) for name in ("nvidia.com/gpu", "cpu", "amd.com/gpu")] == [2, 3, 0]


class Clock:
    def __init__(self) -> None:
        self.now = BEGIN

    def __call__(self) -> datetime:
        return self.now


def test_a_deleted_pod_stays_known_until_it_must_have_been_counted() -> None:
    clock = Clock()
    known = DeviceUse(clock)
    active = pod(running(5))
    known.note(None, pod())
    assert known.of("gpu") == ()
    known.note(pod(), active)
    assert [span(each) for each in known.of("gpu")] == [(5, None)]
    clock.now += timedelta(seconds=30, microseconds=7)
    known.note(active, None)
    assert [span(each) for each in known.of("gpu")] == [(5, 30)]
    clock.now += KEPT - timedelta(seconds=1)
    known.note({**active, "metadata": {**active["metadata"], "uid": "other"}}, None)
    assert len(known.of("gpu")) == 2
    clock.now += timedelta(seconds=2)
    known.note({**active, "metadata": {**active["metadata"], "uid": "third"}}, None)
    assert len(known.of("gpu")) == 2


def test_a_pod_that_is_found_to_be_gone_after_its_watch_broke_ended_when_it_was_last_watched() -> None:
    clock, ages = Clock(), {"team": 20.6}
    known = DeviceUse(clock, ages.__getitem__)
    known.note(None, pod(running(5)))
    known.note(None, named(pod(running(25)), "late"))
    clock.now += timedelta(seconds=40)
    known.note(pod(running(5)), None)
    known.note(named(pod(running(25)), "late"), None)
    assert [span(each) for each in known.of("gpu")] == [(5, 20), (25, 25)]


def test_a_pod_that_ended_before_its_deletion_keeps_its_end() -> None:
    known, ended = DeviceUse(Clock()), pod(terminated(5, 20), phase="Succeeded")
    known.note(pod(running(5)), ended)
    known.note(ended, None)
    assert [span(each) for each in known.of("gpu")] == [(5, 20)]


def test_a_pod_whose_labels_change_uses_nothing_of_its_old_profile_any_more() -> None:
    clock = Clock()
    known = DeviceUse(clock)
    known.note(None, pod(running(0)))
    clock.now += timedelta(seconds=30)
    known.note(pod(running(0)), pod(running(0), profile="other"))
    assert [span(each) for each in known.of("gpu")] == [(0, 30)]
    assert [span(each) for each in known.of("other")] == [(0, None)]


def named(manifest: Manifest, uid: str) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "uid": uid}}


def test_a_pod_whose_container_restarts_stays_known_from_its_first_start() -> None:
    clock = Clock()
    known = DeviceUse(clock)
    for old, new in itertools.pairwise([None, pod(running(5)), pod(WAITING), pod(running(60))]):
        known.note(old, new)
        assert [span(each) for each in known.of("gpu")] == [(5, None)]
    clock.now += KEPT + timedelta(seconds=1)
    known.note(named(pod(running(5)), "other"), None)
    assert (5, None) in [span(each) for each in known.of("gpu")]


def test_a_pod_that_ends_while_its_container_waits_has_ended() -> None:
    clock = Clock()
    known = DeviceUse(clock)
    known.note(None, pod(running(5)))
    clock.now += timedelta(seconds=30)
    known.note(pod(running(5)), pod(WAITING, phase="Failed"))
    assert [span(each) for each in known.of("gpu")] == [(5, 30)]


def test_a_pod_whose_labels_changed_back_is_not_forgotten() -> None:
    clock = Clock()
    known = DeviceUse(clock)
    here, there = pod(running(0)), pod(running(0), profile="other")
    for old, new in itertools.pairwise([None, here, there, here]):
        known.note(old, new)
    clock.now += KEPT + timedelta(seconds=1)
    known.note(named(here, "second"), None)
    assert (0, None) in [span(each) for each in known.of("gpu")]


def test_a_pod_that_another_one_of_its_name_replaced_has_ended() -> None:
    clock = Clock()
    known = DeviceUse(clock)
    known.note(None, pod(running(0)))
    clock.now += timedelta(seconds=30)
    known.note(pod(running(0)), named(pod(running(20)), "next"))
    assert [span(each) for each in known.of("gpu")] == [(0, 30), (20, None)]
