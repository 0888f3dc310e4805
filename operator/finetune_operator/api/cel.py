# SPDX-License-Identifier: Apache-2.0
"""CEL expressions over lists of names."""

from collections.abc import Sequence


def is_one_of(expression: str, names: Sequence[str]) -> str:
    """CEL expression: the string is one of these names."""
    if len(names) == 1:
        return f"{expression} == '{names[0]}'"
    return f"{expression} in [{', '.join(repr(name) for name in names)}]"


def is_none_of(expression: str, names: Sequence[str]) -> str:
    """CEL expression: the string is none of these names."""
    if len(names) == 1:
        return f"{expression} != '{names[0]}'"
    return f"!({is_one_of(expression, names)})"
