# SPDX-License-Identifier: Apache-2.0
"""What an engine needs to generate the answers of an evaluation."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredModels:
    """What one server loads: a base model or a whole one, and its adapters."""

    name: str
    """Name and folder of the base model or whole model."""
    adapters: tuple[str, ...]
    """Names and folders of the adapters. With them, the base model has the name `BASE_FOLDER`."""
    max_rank: int
    """Highest rank of the adapters."""
    accelerators: int
    """Accelerators of the pod; 0 if devices are CPU cores."""
    arguments: tuple[str, ...] = ()
    """Arguments of the user, after those of the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringEngine:
    """An engine whose server has the completions API of vLLM, with token ids."""

    highest_rank: int
    """Highest rank of an adapter that it loads. It loads no DoRA."""
    command: Callable[[AnsweredModels], list[str]]
    """Command of a server on the loopback address."""
    environment: Callable[[str], list[dict[str, str]]]
    """Variables of its container, given the folder of our package."""
