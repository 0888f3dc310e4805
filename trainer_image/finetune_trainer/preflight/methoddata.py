# SPDX-License-Identifier: Apache-2.0
"""Check that method and rows suit each other, and resolve the settings for preference data."""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from finetune_trainer.contract.method import (
    DEFAULT_OBJECTIVE,
    LABELLED,
    OBJECTIVES,
    Method,
    Preference,
    Sharding,
    can_shard,
    objectives_where,
    types_of,
)
from finetune_trainer.contract.vocabulary import FailureReason, RowForm, listed
from finetune_trainer.runtime.failure import StageFailure


def check_method(method: Method, form: RowForm) -> None:
    """Raise StageFailure (INVALID_CONFIG) for a pair that the trainer does not have, and for rows of a form
    that the objective does not train on."""
    objective, types = method.objective, types_of(method.objective)
    if method.type not in types:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"method.type: {method.type} is not in this release with method.objective: {objective}; set"
            f" method.type to {listed(types, 'or')}",
        )
    needed = OBJECTIVES[objective].rows
    if form in needed.forms:
        return
    suitable = listed(objectives_where(lambda info: form in info.rows.forms), "or")
    raise StageFailure(
        FailureReason.INVALID_CONFIG,
        f"method.objective: {objective} trains on rows with {needed.description}, but the rows of the dataset"
        f" have the format {form}; set method.objective to {suitable}, or choose another dataset",
    )


def check_sharding(sharding: Sharding, method: Method) -> None:
    """Raise StageFailure (INVALID_CONFIG) if the weights cannot be sharded as requested."""
    if sharding == "Sharded" and not can_shard(method):
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            "compute.sharding: Sharded, but the weights of DoRA are replicated in this release; remove it, or"
            " remove method.lora.dora",
        )


class Labelled(Protocol):
    """A row of preference data, with its label if it has one."""

    @property
    def label(self) -> bool | None:
        """Whether the answer is good."""


def resolve_preference(method: Method, train: Iterable[Labelled]) -> Preference | None:
    """Resolve the settings of an objective for preference data; None for other objectives.

    The default weights of KTO give both labels the same total weight: desirable weight × good rows =
    undesirable weight × bad rows, as its paper recommends (Ethayarajh et al., 2024, equation 8). The label
    with more rows has the weight 1.
    Raises StageFailure (INVALID_CONFIG) if all rows have the same label.
    """
    rows = OBJECTIVES[method.objective].rows
    if not rows.is_preference_data:
        return None
    if rows is not LABELLED:
        return method.preference
    labels = Counter(row.label is True for row in train)
    good, bad = labels[True], labels[False]
    if not (good and bad):
        missing = "true" if bad else "false"
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"method.objective: {method.objective} needs good and bad answers, but none of the {good + bad}"
            f" training rows has the label {missing}; add such rows, or train on the good answers with"
            f" method.objective: {DEFAULT_OBJECTIVE}",
        )
    given = method.preference
    desirable, undesirable = given.desirable_weight, given.undesirable_weight
    if desirable is None and undesirable is None:
        desirable, undesirable = (1.0, good / bad) if good > bad else (bad / good, 1.0)
    elif desirable is None and undesirable is not None:
        desirable = undesirable * bad / good
    elif undesirable is None and desirable is not None:
        undesirable = desirable * good / bad
    return given.model_copy(
        update={"desirable_weight": _rounded(desirable), "undesirable_weight": _rounded(undesirable)}
    )


def _rounded(weight: float | None) -> float:
    return float(f"{weight or 0:.4g}")
