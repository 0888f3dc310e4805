# SPDX-License-Identifier: Apache-2.0
"""The options of a Dataset are the same in the API, the contract and the registry of formats."""

import dataclasses
from typing import get_args

import pytest

from finetune_operator.api import dataset as api
from finetune_operator.api.meta import Model
from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data.formats.registry import FORMATS


def test_every_format_of_the_contract_is_registered_under_its_own_name() -> None:
    assert FORMATS.keys() == set(get_args(DataFormat))
    assert all(name == form.name for name, form in FORMATS.items())
    assert len({form.title for form in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (api.Columns(), Columns()),
        (api.Split(), Split()),
        (api.Checks(), Checks()),
        (api.Cleaning(), Cleaning()),
    ],
)
def test_fields_and_defaults_are_the_same(asked: Model, sent: Columns | Split | Checks | Cleaning) -> None:
    assert asked.model_dump() == dataclasses.asdict(sent)
