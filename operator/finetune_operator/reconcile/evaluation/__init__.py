# SPDX-License-Identifier: Apache-2.0
"""Reconcile Evaluations: measure existing Checkpoints, one after the other."""
