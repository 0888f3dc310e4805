# SPDX-License-Identifier: Apache-2.0
"""Which pods use devices, from when until when, and how long deleted ones stay known."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_operator.observe.device_usage import PodUse, read_use
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.device_use import KEPT, DeviceUse

BEGIN = datetime(2030, 1, 2, 3, 0, tzinfo=UTC)
STAGE_POD = {"finetune.dev/stage": "train", "finetune.dev/devices": "4"}
PREFLIGHT = {"finetune.dev/stage": "preflight"}
TWO_DEVICES = {"nvidia.com/gpu": "2"}


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
    *statuses: Manifest,
    labels: dict[str, str] = STAGE_POD,
    profile: str = "gpu",
    limits: dict[str, Any] = TWO_DEVICES,
    cores: Any = "2500m",
    **more: Any,
) -> Manifest:
    marks = {"finetune.dev/profile": profile, **labels}
    resources = {"requests": {"cpu": cores}, "limits": limits}
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
        pytest.param(
            pod(running(5), labels={"finetune.dev/stage": "preflight"}, limits={}), None, id="preflight"
        ),
        pytest.param(
            pod(running(5), labels={**STAGE_POD, "finetune.dev/devices": "-1"}), (5, None), id="forged"
        ),
        pytest.param(
            pod(running(5), labels={**STAGE_POD, "finetune.dev/devices": "9" * 30}), (5, None), id="huge"
        ),
        pytest.param(pod(running(5), profile=""), None, id="without a profile"),
        pytest.param(pod(running(5), labels={}), (5, None), id="of an endpoint"),
    ],
)
def test_a_pod_uses_devices_from_its_first_container_to_its_end(
    manifest: Manifest, expected: tuple[float, float | None] | None
) -> None:
    assert span(read_use(manifest)) == expected


def devices(found: PodUse | None, *resources: str) -> list[int]:
    assert found is not None
    return [found.devices(resource) for resource in resources]


def test_devices_are_those_that_the_pod_requests_and_the_label_counts_for_what_it_does_not_request() -> None:
    """Whoever may edit pods may change their labels, but not their resources."""
    names = ("nvidia.com/gpu", "cpu", "amd.com/gpu")
    assert devices(read_use(pod(running(5))), *names) == [2, 4, 4]
    assert devices(read_use(pod(running(5), labels={})), *names) == [2, 3, 0]
    unlabeled = {"finetune.dev/stage": "train"}
    for label in ({}, {"finetune.dev/devices": "0"}, {"finetune.dev/devices": "many"}):
        assert devices(read_use(pod(running(5), labels=unlabeled | label)), "nvidia.com/gpu") == [2]


def test_devices_of_init_containers_count_as_the_scheduler_counts_them() -> None:
    manifest = pod(running(5))
    one, three = ({"resources": {"limits": {"nvidia.com/gpu": number}}} for number in ("1", "3"))
    manifest["spec"]["initContainers"] = [three, {**one, "restartPolicy": "Always"}]
    assert devices(read_use(manifest), "nvidia.com/gpu") == [3]
    manifest["spec"]["initContainers"] = [{**one, "restartPolicy": "Always"}, three]
    assert devices(read_use(manifest), "nvidia.com/gpu") == [4]


@pytest.mark.parametrize(
    ("quantity", "cores"),
    [
        *(("1e-3", 1), ("1E3", 64), ("12e0", 12), ("100m", 1), ("3001m", 4), ("0", 0), ("2", 2), (2, 2)),
        *(("4000000000n", 4), ("2500000u", 3), (".5", 1), ("5.", 5), ("+2", 2)),
        *(("1Ki", 64), ("1E", 64), ("1Ei", 64), ("1.5", 2), ("1e999", 64)),
    ],
)
def test_every_quantity_of_kubernetes_is_read(quantity: Any, cores: int) -> None:
    assert devices(read_use(pod(running(5), labels={}, cores=quantity)), "cpu") == [cores]


@pytest.mark.parametrize(
    "quantity", ["", "x", "1e", "5e9n", "1 Ki", "1mi", "9" * 65, "1e1000000", "٣", None, {"a": 1}]
)
@pytest.mark.parametrize("labels", [{}, {"finetune.dev/stage": "train"}], ids=["endpoint", "stage"])
def test_a_pod_that_cannot_be_read_is_reported_once_and_the_others_count(
    quantity: Any, labels: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    known = DeviceUse(Clock())
    odd = pod(running(5), labels=labels, limits={"nvidia.com/gpu": quantity})
    odd["metadata"] |= {"uid": "odd", "name": "odd"}
    for old, new in ((None, odd), (odd, odd), (None, pod(running(5)))):
        known.note(old, new)
    assert sorted(use.devices("nvidia.com/gpu") for use in known.of("gpu")) == [0, 2]
    (message,) = caplog.messages
    assert message.startswith("the requests of pod team/odd cannot be read and do not count for the budget")


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
