# SPDX-License-Identifier: Apache-2.0
"""Make the recipe of a preparation from its config, and the digest that identifies the preparation."""

import dataclasses
from typing import Any, Final

from finetune_trainer import canonical
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.prepare import PrepareConfig
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.vocabulary import RULE_VERSIONS, DataFormat, listed
from finetune_trainer.data.options import FieldNames, Recipe
from finetune_trainer.data.prompttemplate import PromptTemplate
from finetune_trainer.manifest import digest_of
from finetune_trainer.runtime.failure import StageFailure

VERSION: Final = 2
"""Version of the preparation. Raise it when the same settings produce different rows."""


def recipe_of(config: PrepareConfig) -> Recipe:
    """The recipe of the config. Raises StageFailure (INVALID_CONFIG) for contradictory settings."""
    columns = dataclasses.asdict(config.columns)
    named = [name for name in columns.values() if name is not None]
    prompt, completion = config.columns.prompt or "prompt", config.columns.completion or "completion"
    if config.template is None and prompt == completion:
        raise _invalid(f"columns.prompt and columns.completion are both {prompt!r}; name two columns")
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise _invalid(f"columns names {twice!r} twice; name another column")
    if config.rule_version not in RULE_VERSIONS:
        raise _invalid(
            f"the Dataset has rule version {config.rule_version}, and this trainer image has"
            f" {listed(tuple(map(str, RULE_VERSIONS)))}; use the trainer image of the operator's release"
        )
    if config.template is not None:
        try:
            PromptTemplate.parse(config.template)
        except ValueError as error:
            raise _invalid(f"template: {error}") from error
    return Recipe(
        format=config.format,
        names=FieldNames(**columns, template=config.template),
        division=config.split,
        cleaning=config.cleaning,
        checks=config.checks,
        kept_columns=config.keep_columns,
        rule_version=config.rule_version,
    )


def preparation_digest(config: PrepareConfig, recipe: Recipe, found: DataFormat | None) -> Digest:
    """Digest of everything that was done to the source, requested or by default.

    `recipe` is the config's, `found` the detected format of the rows.

    Settings at their default are omitted, so that adding a setting later does not change existing digests.
    """
    return digest_of(
        canonical.encode(
            {
                "version": VERSION,
                "recipe": _settings(dataclasses.replace(recipe, format=found)),
                "onInvalidRows": config.on_invalid_rows,
                "maxInvalidFraction": config.max_invalid_fraction,
            }
        )
    )


def _settings(recipe: Recipe) -> dict[str, Any]:
    given, defaults = dataclasses.asdict(recipe), dataclasses.asdict(Recipe())
    return {
        part: value
        if not isinstance(value, dict)
        else {name: setting for name, setting in value.items() if setting != defaults[part][name]}
        for part, value in given.items()
        if part != "kept_columns" or value
    }


def _invalid(message: str) -> StageFailure:
    return StageFailure(FailureReason.INVALID_CONFIG, message)
