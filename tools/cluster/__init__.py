# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes on this machine, without a container engine or an image registry."""

from tools.cluster.cluster import TestCluster
from tools.cluster.commands import ClusterError
from tools.cluster.control_plane import ControlPlane
from tools.cluster.toolchain import program

__all__ = ["ClusterError", "ControlPlane", "TestCluster", "program"]
