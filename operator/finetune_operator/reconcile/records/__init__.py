# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and DatasetVersions as records: their owners, users, history limits and deletion."""
