# SPDX-License-Identifier: Apache-2.0
"""The values of each trial of a sweep, from its number: points of a grid or of a shifted Halton sequence.

Nothing is remembered between trials, so a crash cannot change the values of one.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Final

from finetune_operator.api.finetune_sweep import WHOLE_NUMBERS, SearchParameter

PRIMES: Final = (2, 3, 5, 7, 11, 13)
"""Bases of the Halton sequence, one per parameter."""

Value = float | str


def grid_size(parameters: Sequence[SearchParameter]) -> int:
    """Number of combinations of the listed values."""
    return math.prod(len(each.listed) for each in parameters)


def grid_point(number: int, parameters: Sequence[SearchParameter]) -> dict[str, Value]:
    """The combination with this number, from 0. The last parameter changes fastest.

    Raises:
        IndexError: the grid is smaller.
    """
    point: dict[str, Value] = {}
    for parameter in reversed(parameters):
        number, index = divmod(number, len(parameter.listed))
        point[parameter.field] = _clean(parameter, parameter.listed[index])
    if number:
        raise IndexError("the grid has fewer combinations")
    return {each.field: point[each.field] for each in parameters}


def random_point(number: int, parameters: Sequence[SearchParameter], seed: int) -> dict[str, Value]:
    """The point with this number, from 0, of a Halton sequence (Halton, 1960) in one base per parameter.

    A random shift per seed and field, modulo 1 (Cranley and Patterson, 1976), makes seeds different.
    """
    return {
        each.field: _value(each, (radical_inverse(number + 1, base) + _shift(seed, each.field)) % 1)
        for base, each in zip(PRIMES, parameters, strict=False)
    }


def radical_inverse(number: int, base: int) -> float:
    """The digits of a number in this base, mirrored at the radix point: at least 0, below 1."""
    fraction, weight = 0.0, 1.0
    while number:
        weight /= base
        number, digit = divmod(number, base)
        fraction += digit * weight
    return fraction


def _shift(seed: int, field: str) -> float:
    digest = hashlib.sha256(f"{seed}/{field}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _value(parameter: SearchParameter, share: float) -> Value:
    if parameter.min is None or parameter.max is None:
        return _clean(parameter, parameter.listed[int(share * len(parameter.listed))])
    low, high = parameter.min, parameter.max
    if parameter.scale == "Log":
        return _clean(parameter, low * (high / low) ** share)
    return _clean(parameter, low + (high - low) * share)


def _clean(parameter: SearchParameter, value: Value) -> Value:
    """A value of a range as a whole number if its field is one, or else with four digits, for readers."""
    if isinstance(value, str):
        return value
    if parameter.values is not None:
        return int(value) if value.is_integer() else value
    return round(value) if parameter.field in WHOLE_NUMBERS else float(f"{value:.4g}")
