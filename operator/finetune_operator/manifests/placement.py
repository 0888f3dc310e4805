# SPDX-License-Identifier: Apache-2.0
"""Node selection of pods with devices."""

from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.plan import Manifest


def device_placement(profile: ComputeProfile) -> Manifest:
    """The part of a pod's spec that selects nodes for pods with devices."""
    spec = profile.spec
    placement: Manifest = {}
    if spec.node_selector:
        placement["nodeSelector"] = dict(spec.node_selector)
    if spec.tolerations:
        placement["tolerations"] = [toleration.to_dict() for toleration in spec.tolerations]
    if spec.runtime_class_name:
        placement["runtimeClassName"] = spec.runtime_class_name
    return placement
