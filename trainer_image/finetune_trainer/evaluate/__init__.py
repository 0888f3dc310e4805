# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a checkpoint and its base model on held-out rows."""
