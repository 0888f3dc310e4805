# SPDX-License-Identifier: Apache-2.0
"""Reconcile Checkpoints: decide the promotion, and record evaluations and users."""
