"""What a Dataset may ask for is said in three places, none of which imports another; they say the same."""

import dataclasses
from typing import get_args

import pytest

from finetune_operator.api import dataset as api
from finetune_operator.api.meta import Model
from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.dataset import Checks, Cleaning, Split
from finetune_trainer.contract.vocabulary import DataFormat
from finetune_trainer.data import options
from finetune_trainer.data.formats.registry import FORMATS


def test_every_format_of_the_contract_is_registered_under_its_own_name() -> None:
    assert FORMATS.keys() == set(get_args(DataFormat))
    assert all(name == form.name for name, form in FORMATS.items())
    assert len({form.title for form in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize(
    ("asked", "sent", "taken"),
    [
        # Absent, the operator says the version: that of the Dataset's first DatasetVersion, or the newest.
        (api.Split(rule_version=1), Split(), options.Division()),
        (api.Checks(), Checks(), options.Checks()),
        (api.Cleaning(), Cleaning(), options.Cleaning()),
    ],
)
def test_fields_and_defaults_are_the_same(
    asked: Model, sent: Contract, taken: options.Division | options.Checks | options.Cleaning
) -> None:
    assert asked.model_dump() == sent.model_dump() == dataclasses.asdict(taken)
