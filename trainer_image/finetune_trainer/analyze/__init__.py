# SPDX-License-Identifier: Apache-2.0
"""Analyze a new revision of an endpoint: read the metrics of its pods, and decide its gates."""
