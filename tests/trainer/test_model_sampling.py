# SPDX-License-Identifier: Apache-2.0
"""Sampling of the next token."""

from collections import Counter

import pytest
import torch

from finetune_trainer.model.generation import Sampler

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0])
PROBABILITIES = torch.softmax(LOGITS, dim=-1)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert Sampler(temperature=0, top_p=1, seed=None).choose(LOGITS) == 1


def test_a_tiny_temperature_takes_the_likeliest_without_overflow() -> None:
    sampler = Sampler(temperature=1e-30, top_p=1, seed=0)

    assert {sampler.choose(LOGITS * 1000) for _ in range(20)} == {1}


@pytest.mark.parametrize("top_p", [1, 0.999])
def test_tokens_are_drawn_with_their_probabilities(top_p: float) -> None:
    sampler = Sampler(temperature=1, top_p=top_p, seed=0)
    drawn = Counter(sampler.choose(LOGITS) for _ in range(4000))

    for token, probability in enumerate(PROBABILITIES.tolist()):
        assert drawn[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_top_p_leaves_the_fewest_tokens_that_reach_it() -> None:
    # 0.64, 0.24, 0.09, 0.01: 0.64 alone is less than 0.7; with the second it is more.
    sampler = Sampler(temperature=1, top_p=0.7, seed=0)

    assert {sampler.choose(LOGITS) for _ in range(500)} == {1, 2}


def test_a_seed_repeats_the_draws() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(temperature=2, top_p=1, seed=seed)
        return [sampler.choose(LOGITS) for _ in range(50)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(-(2**63)) == draws(-(2**63))
