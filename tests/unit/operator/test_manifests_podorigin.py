# SPDX-License-Identifier: Apache-2.0
"""Every field of a ComputeProfile either shapes pods or does not."""

from typing import Any

from finetune_operator.api.compute_profile import ComputeProfile, ComputeProfileSpec
from finetune_operator.manifests.pod_origin import SHAPES_NO_PODS, SHAPES_PODS, profile_digest
from tests.unit.operator.runobjects import profile


def digest(**spec: Any) -> str:
    return profile_digest(ComputeProfile.model_validate(profile(**spec)))


def test_every_field_is_classified_once() -> None:
    """A new field: decide whether pods that could not start may start after its edit."""
    assert set(ComputeProfileSpec.model_fields) == SHAPES_PODS.keys() | SHAPES_NO_PODS
    assert not SHAPES_PODS.keys() & SHAPES_NO_PODS
    for name, part in SHAPES_PODS.items():
        if isinstance(part, set):
            assert part < set(type(getattr(ComputeProfileSpec(), name)).model_fields), name


def test_the_digest_is_that_of_the_fields_that_shape_pods() -> None:
    assert digest(pods=[{"nodeSelector": {"pool": "gpu"}}]) != digest()
    assert digest(limits={"nodes": 2}) != digest()
    assert digest(cost={"pricePerDeviceHour": 2.0}, limits={"runSeconds": 600}) == digest()


def test_a_default_that_is_written_out_changes_no_digest() -> None:
    assert digest(serving={"engine": "Transformers"}, kueue={}, limits={"nodes": None}, pods=[]) == digest()
