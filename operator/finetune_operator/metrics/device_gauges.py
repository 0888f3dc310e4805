# SPDX-License-Identifier: Apache-2.0
"""Gauges of devices: what pods hold and wait for, by team, and how much of their memory runs used."""

from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import get_args

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.labels import OWNER_KIND, PROFILE
from finetune_operator.observe.device_usage import (
    DeviceState,
    device_state,
    devices_per_pod,
    missing_job_pods,
    missing_replicas,
)
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.inputs.device_use import Calibration
from finetune_operator.reconcile.registry import KIND_ROWS


class DeviceCollector(Collector):
    """Counts devices at each scrape. Only the active process exports them.

    Args:
        objects: cached objects by kind: Pod, Job, Deployment, InferenceDeployment and ComputeProfile.
        active: whether this process is the active one.
        calibration: what the last runs measured.
    """

    def __init__(
        self,
        objects: Mapping[str, Iterable[Manifest]],
        active: Callable[[], bool],
        calibration: Calibration,
    ) -> None:
        self._objects = objects
        self._active = active
        self._calibration = calibration

    def collect(self) -> Iterator[Metric]:
        devices = GaugeMetricFamily(
            "finetune_devices",
            "Devices of pods and of Jobs without pods, by state. waiting: no node yet, or queued. starting: a"
            " node is assigned, and images or weights are on their way. running: a container of the stage"
            " runs, or the replica is ready. ending: being deleted. All except waiting are held.",
            labels=("namespace", "profile", "workload", "state"),
        )
        memory = GaugeMetricFamily(
            "finetune_device_memory_used_ratio",
            "Peak memory of training divided by the memory of a device: median of the last 20 runs with the"
            " ComputeProfile; absent if the memory of its devices is unknown.",
            labels=("profile",),
        )
        flops = GaugeMetricFamily(
            "finetune_device_flops_used_ratio",
            "Model FLOPs utilization (MFU), the FLOPs of training divided by what its devices can compute in"
            " that time: median of the last 20 runs with the ComputeProfile; absent if the peak of its"
            " devices is unknown.",
            labels=("profile",),
        )
        if self._active():
            profiles = {profile["metadata"]["name"] for profile in self._objects[ComputeProfile.__name__]}
            for labels, states in sorted(self._counted(profiles).items()):
                for state in get_args(DeviceState):
                    devices.add_metric((*labels, state), states[state])
            for profile in sorted(profiles):
                for family, ratio in (
                    (memory, self._calibration.memory_used_ratio(profile)),
                    (flops, self._calibration.mfu(profile)),
                ):
                    if ratio is not None:
                        family.add_metric((profile,), ratio)
        yield from (devices, memory, flops)

    def _counted(self, profiles: Set[str]) -> Mapping[tuple[str, str, str], Tally[DeviceState]]:
        """Devices by state, of each namespace, profile and workload with pods or Jobs."""
        counted: defaultdict[tuple[str, str, str], Tally[DeviceState]] = defaultdict(Tally)
        for obj, state, pods in self._states():
            metadata = obj["metadata"]
            labels = metadata.get("labels") or {}
            profile, owner = labels.get(PROFILE, ""), KIND_ROWS.get(labels.get(OWNER_KIND, ""))
            workload = None if owner is None else owner.workload
            per_pod = devices_per_pod(obj)
            # Labels of pods are not trusted: a profile that does not exist would be a series without bound.
            if per_pod and workload is not None and profile in profiles:
                counted[metadata["namespace"], profile, workload][state] += pods * per_pod
        return counted

    def _states(self) -> Iterator[tuple[Manifest, DeviceState, int]]:
        """Pods, Jobs and Deployments with a state and the number of pods in it."""
        for pod in self._objects["Pod"]:
            state = device_state(pod)
            if state is not None:
                yield pod, state, 1
        for job in self._objects["Job"]:
            yield job, "waiting", missing_job_pods(job)
        for deployment in self._objects["Deployment"]:
            yield deployment, "waiting", missing_replicas(deployment)
