# SPDX-License-Identifier: Apache-2.0
"""Base models for the demo and the tests: folders that transformers can load, built once and cached."""

from tools.models.gemma import gemma
from tools.models.tiny import tiny

__all__ = ["gemma", "tiny"]
