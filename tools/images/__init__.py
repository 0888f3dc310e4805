# SPDX-License-Identifier: Apache-2.0
"""Build the container images of the operator and the trainer from the repository's Dockerfiles."""
