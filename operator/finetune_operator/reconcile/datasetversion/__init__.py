# SPDX-License-Identifier: Apache-2.0
"""Reconcile DatasetVersions: record which stores hold the content."""
