"""A real Kubernetes on this machine, without a container engine or an image registry."""

from hack.cluster.cluster import Cluster
from hack.cluster.control_plane import ControlPlane
from hack.cluster.errors import ClusterError
from hack.cluster.toolchain import program

__all__ = ["Cluster", "ClusterError", "ControlPlane", "program"]
