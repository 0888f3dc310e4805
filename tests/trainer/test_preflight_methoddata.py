# SPDX-License-Identifier: Apache-2.0
"""Preference data: the methods that use it, the lengths of its rows, and the default weights of KTO."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.method import LoRA, Method, Preference, Sharding
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.preflight.method_checks import resolve_preference
from finetune_trainer.rows import Message, Row
from finetune_trainer.tokens.encoding import RowEncoder
from tests.methods import method_of
from tests.trainer.workbench import JUDGED, PAIRS, ROWS, Workbench, tiny_tokenizer

CHAT = (replace(ROWS[0], form="ChatMessages"),)
GOOD = [row for row in JUDGED if row.label]
BAD = [row for row in JUDGED if not row.label]


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


def kto(**preference: Any) -> Method:
    return Method(objective="KTO", preference=Preference(**preference))


@pytest.mark.parametrize(
    ("objective", "rows", "form", "instead"),
    [
        ("SFT", PAIRS, "Preference", "DPO or ORPO"),
        ("SFT", JUDGED, "KTO", "KTO"),
        ("DPO", ROWS, "PromptCompletion", "SFT"),
        ("DPO", JUDGED, "KTO", "KTO"),
        ("ORPO", CHAT, "ChatMessages", "SFT"),
        ("KTO", PAIRS, "Preference", "DPO or ORPO"),
    ],
)
def test_rows_of_another_form_are_rejected_before_the_model_is_read(
    bench: Workbench, objective: str, rows: Sequence[Row], form: str, instead: str
) -> None:
    failure = bench.preflight_failure(
        bench.root / "no-model", bench.dataset(rows), method=method_of(objective)
    )

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert failure.message.startswith(f"method.objective: {objective} trains on rows with ")
    assert failure.message.endswith(
        f"the format {form}; set method.objective to {instead}, or choose another dataset"
    )


def test_a_pair_that_the_trainer_does_not_have_is_rejected_before_the_model_is_read(bench: Workbench) -> None:
    failure = bench.preflight_failure(
        bench.root / "no-model", bench.dataset(PAIRS), method=Method(objective="DPO", type="Full")
    )

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert failure.message == (
        "method.type: Full is not in this release with method.objective: DPO;"
        " set method.type to LoRA or QLoRA"
    )


@pytest.mark.parametrize(("method", "rows"), [("DPO", PAIRS), ("ORPO", PAIRS), ("KTO", JUDGED)])
def test_rows_that_fit_their_method_pass_with_its_settings(
    bench: Workbench, method: str, rows: Sequence[Row]
) -> None:
    result = bench.preflight(
        dataset=bench.dataset(rows), method=method_of(method, preference=Preference(beta=0.2))
    )

    assert result.preference is not None
    assert result.preference.beta == 0.2
    assert result.hyperparameters.learning_rate == {"DPO": 5e-6, "ORPO": 8e-5, "KTO": 5e-6}[method]
    assert (result.preference.desirable_weight is not None) == (method == "KTO")


def test_a_method_for_completions_has_no_preference_settings(bench: Workbench) -> None:
    assert bench.preflight().preference is None


def test_the_longer_of_two_answers_counts(bench: Workbench) -> None:
    long = replace(PAIRS[0], rejected="it is not " * 20)
    whole = replace(long, messages=(*long.input, replace(long.messages[-1], content=long.rejected or "")))

    result = bench.preflight(dataset=bench.dataset((*PAIRS, long)), method=Method(objective="DPO"))

    assert result.longest_row_tokens == len(RowEncoder(tiny_tokenizer()).encode(whole).input_ids)


def test_a_pair_whose_prompt_leaves_no_room_for_answers_is_named(bench: Workbench) -> None:
    long = replace(
        PAIRS[0], messages=(replace(PAIRS[0].messages[0], content="late " * 60), PAIRS[0].messages[1])
    )

    failure = bench.preflight_failure(
        dataset=bench.dataset((*PAIRS, long)),
        method=Method(objective="DPO"),
        hyperparameters={"max_sequence_length": 32, "on_long_rows": "Truncate"},
    )

    assert failure.reason == FailureReason.SEQUENCE_TOO_LONG
    assert "train row 13" in failure.message


def test_target_modules_are_checked_for_every_method_with_an_adapter(bench: Workbench) -> None:
    method = Method(objective="DPO", lora=LoRA(target_modules=("nothing",)))

    failure = bench.preflight_failure(dataset=bench.dataset(PAIRS), method=method)

    assert failure.message.startswith("method.lora.targetModules: the model has no linear layer nothing")


@pytest.mark.parametrize(
    ("good", "bad", "given", "desirable", "undesirable"),
    [
        (3, 3, {}, 1, 1),
        (6, 2, {}, 1, 3),
        (1, 6, {}, 6, 1),
        (6, 2, {"desirable_weight": 0.5}, 0.5, 1.5),
        (6, 2, {"undesirable_weight": 1}, 0.3333, 1),
        (6, 2, {"desirable_weight": 2, "undesirable_weight": 4}, 2, 4),
    ],
)
def test_the_default_weights_of_kto_give_both_labels_the_same_total_weight(
    good: int, bad: int, given: dict[str, float], desirable: float, undesirable: float
) -> None:
    chosen = resolve_preference(kto(**given), [*GOOD[:good], *BAD[:bad]])

    assert chosen is not None
    assert (chosen.desirable_weight, chosen.undesirable_weight) == (desirable, undesirable)


def test_the_default_weights_of_kto_count_the_rows_that_are_used(bench: Workbench) -> None:
    long = replace(BAD[0], messages=(BAD[0].messages[0], Message("assistant", "it is not " * 20)))
    rows = [*GOOD[:4], *BAD[:2], long, long]

    result = bench.preflight(
        dataset=bench.dataset(rows),
        method=kto(),
        hyperparameters={"max_sequence_length": 64, "on_long_rows": "Drop"},
    )

    assert (result.train_rows, result.dropped_rows) == (6, 2)
    assert result.preference is not None
    assert (result.preference.desirable_weight, result.preference.undesirable_weight) == (1, 2)


@pytest.mark.parametrize(("rows", "missing"), [(GOOD, "false"), (BAD, "true")])
def test_kto_needs_both_labels(bench: Workbench, rows: list[Row], missing: str) -> None:
    failure = bench.preflight_failure(dataset=bench.dataset(rows), method=kto())

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert f"none of the 6 training rows has the label {missing}; add such rows" in failure.message


def test_weights_that_cannot_be_sharded_are_refused_before_the_model_is_read(bench: Workbench) -> None:
    method = Method(lora=LoRA(dora=True))
    failure = bench.preflight_failure(
        bench.root / "no-model", bench.dataset(ROWS), method=method, sharding="Sharded"
    )

    assert failure.reason == FailureReason.INVALID_CONFIG
    assert "compute.sharding: Sharded, but the weights of DoRA are replicated" in str(failure)


@pytest.mark.parametrize(
    ("method", "sharding", "sharded"),
    [
        ("Full", "Auto", None),
        ("Full", "Replicated", False),
        ("LoRA", "Auto", None),
        ("QLoRA", "Sharded", True),
    ],
)
def test_the_requested_sharding_is_resolved(
    bench: Workbench, method: str, sharding: Sharding, *, sharded: bool | None
) -> None:
    result = bench.preflight(
        dataset=bench.dataset(ROWS), method=method_of(method), sharding=sharding, nodes=2
    )

    assert result.hyperparameters.sharded is sharded
