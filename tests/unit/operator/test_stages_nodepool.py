# SPDX-License-Identifier: Apache-2.0
"""Whether the pods of two ComputeProfiles can get devices of the same nodes."""

from typing import Any

import pytest

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.plan import Manifest
from finetune_operator.reconcile.stages.gang_deadlock import NodePool
from finetune_operator.stage_table import pod_names


def pool(**spec: Any) -> NodePool:
    """The nodes of train pods."""
    manifest = {"kind": "ComputeProfile", "metadata": {"name": "gpu"}, "spec": spec}
    return NodePool.of(ComputeProfile.model_validate(manifest), pod_names("train"))


def requiring(*terms: list[tuple[str, str, list[str]]]) -> NodePool:
    """The nodes of train pods with a required node affinity of these terms."""
    alternatives = [
        {"matchExpressions": [dict(zip(("key", "operator", "values"), each, strict=True)) for each in term]}
        for term in terms
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": alternatives}}
    return pool(pods=[{"affinity": {"nodeAffinity": required}}])


A100 = [("gpu", "In", ["a100"])]
ANY = pool()


@pytest.mark.parametrize(
    ("one", "other", "shares"),
    [
        (ANY, ANY, True),
        (ANY, pool(accelerator={"resource": "amd.com/gpu", "maxPerPod": 4}), False),
        (
            pool(pods=[{"nodeSelector": {"gpu": "a100"}}]),
            pool(pods=[{"nodeSelector": {"gpu": "h100"}}]),
            False,
        ),
        (pool(pods=[{"nodeSelector": {"gpu": "a100"}}]), pool(pods=[{"nodeSelector": {"zone": "a"}}]), True),
        (pool(pods=[{"nodeSelector": {"gpu": "h100"}}]), requiring(A100), False),
        (
            pool(pods=[{"nodeSelector": {"gpu": "h100"}}]),
            requiring(A100, [("gpu", "In", ["h100", "h200"])]),
            True,
        ),
        (requiring(A100), requiring([("gpu", "NotIn", ["a100"])]), False),
        (requiring(A100), requiring([("gpu", "NotIn", ["h100"])]), True),
        (requiring(A100), requiring([("gpu", "DoesNotExist", [])]), False),
        (requiring(A100), requiring([("gpu", "Exists", [])]), True),
        (requiring([("gpu", "Exists", [])]), requiring([("gpu", "DoesNotExist", [])]), False),
        (requiring([("gpu", "NotIn", ["a100"])]), requiring([("gpu", "DoesNotExist", [])]), True),
        (requiring([("count", "Gt", ["4"])]), requiring([("count", "Lt", ["5"])]), False),
        (requiring([("count", "Gt", ["4"])]), requiring([("count", "Lt", ["6"])]), True),
        (requiring([("count", "Gt", ["4"])]), requiring([("count", "In", ["4", "none"])]), False),
        (requiring([("count", "Lt", ["5"])]), requiring([("count", "In", ["4", "8"])]), True),
        (requiring([("zone", "In", ["a"])]), requiring(A100), True),
    ],
)
def test_two_profiles_share_nodes_unless_a_label_keeps_them_apart(
    one: NodePool, other: NodePool, shares: bool
) -> None:
    assert one.may_share_nodes_with(other) is shares
    assert other.may_share_nodes_with(one) is shares


def test_preferred_nodes_keep_no_one_apart() -> None:
    def preferring(gpu: str) -> NodePool:
        term = {"matchExpressions": [{"key": "gpu", "operator": "In", "values": [gpu]}]}
        preferred = [{"weight": 1, "preference": term}]
        affinity = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
        return pool(pods=[{"affinity": affinity}])

    assert preferring("a100").may_share_nodes_with(preferring("h100"))


def tolerating(*tolerations: Manifest) -> NodePool:
    return pool(pods=[{"tolerations": list(tolerations)}])


OURS: Manifest = {"key": "dedicated", "value": "ours"}
THEIRS: Manifest = {"key": "dedicated", "value": "theirs"}


@pytest.mark.parametrize(
    ("one", "other", "differs"),
    [
        (tolerating(OURS), tolerating(THEIRS), True),
        (tolerating(OURS), tolerating(OURS), False),
        (tolerating(OURS), tolerating(), False),
        (tolerating(OURS, THEIRS), tolerating(THEIRS), False),
        (tolerating(OURS), tolerating({"key": "dedicated", "operator": "Exists"}), False),
        (tolerating(OURS), tolerating({"operator": "Exists"}), False),
        (tolerating({**OURS, "effect": "NoSchedule"}), tolerating({**OURS, "effect": "NoExecute"}), True),
        (tolerating(OURS), tolerating({"key": "node.kubernetes.io/not-ready", "operator": "Exists"}), False),
    ],
)
def test_other_taints_are_those_that_only_one_tolerates_on_both_sides(
    one: NodePool, other: NodePool, differs: bool
) -> None:
    assert one.has_other_taints_than(other) is differs
    assert other.has_other_taints_than(one) is differs
