"""Base models for the demo and the tests, as folders that transformers loads, made once and cached."""

from tools.models.gemma import gemma
from tools.models.tiny import tiny

__all__ = ["gemma", "tiny"]
