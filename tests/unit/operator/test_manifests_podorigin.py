# SPDX-License-Identifier: Apache-2.0
"""Every field of a ComputeProfile either shapes pods or does not."""

from typing import Any

from finetune_operator.api.computeprofile import ComputeProfile, ComputeProfileSpec
from finetune_operator.manifests.podorigin import SHAPES_NO_PODS, SHAPES_PODS, profile_digest
from tests.unit.operator.runobjects import profile


def digest(**spec: Any) -> str:
    return profile_digest(ComputeProfile.model_validate(profile(**spec)))


def test_every_field_is_classified_once() -> None:
    """A new field: decide whether pods that could not start may start after its edit."""
    assert set(ComputeProfileSpec.model_fields) == SHAPES_PODS | SHAPES_NO_PODS
    assert not SHAPES_PODS & SHAPES_NO_PODS


def test_the_digest_is_that_of_the_fields_that_shape_pods() -> None:
    assert digest(podTemplates=[{"nodeSelector": {"pool": "gpu"}}]) != digest()
    assert digest(pricePerDeviceHour=2.0) == digest()


def test_a_default_that_is_written_out_changes_no_digest() -> None:
    assert digest(engine="Transformers", tolerations=[], sharedMemory=None) == digest()
