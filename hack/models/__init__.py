"""Base models for the demo and the tests, as folders that transformers loads, made once and cached."""

from hack.models.gemma import gemma
from hack.models.tiny import tiny

__all__ = ["gemma", "tiny"]
