# SPDX-License-Identifier: Apache-2.0
"""Runs without a cluster: the operator's reconcilers over objects in a folder, and pods as processes."""
