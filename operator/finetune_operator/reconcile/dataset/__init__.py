# SPDX-License-Identifier: Apache-2.0
"""Reconcile Datasets: prepare their rows, and check their sources for new ones."""
