# SPDX-License-Identifier: Apache-2.0
"""Reconcile InferenceDeployments: roll out revisions and route requests to them."""
