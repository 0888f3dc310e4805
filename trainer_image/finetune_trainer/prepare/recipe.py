# SPDX-License-Identifier: Apache-2.0
"""Make the recipes of a preparation from its config, and the digest that identifies the preparation."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

from finetune_trainer import canonical_json
from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs import PrepareConfig, SourceConfig
from finetune_trainer.contract.vocabulary import RULE_VERSIONS, DataFormat, FailureReason, join_names
from finetune_trainer.data.recipe import FieldNames, PromptTemplate, Recipe
from finetune_trainer.manifest import digest_of
from finetune_trainer.runtime.termination import StageFailure

VERSION: Final = 2
"""Version of the preparation. Raise it when the same settings produce different rows."""


KEPT_DEFAULTS: Final = frozenset({"format", "names", "division", "cleaning", "checks", "rule_version"})
"""Parts of a recipe that are in the digest also if they are at their default."""


def recipes_of(config: PrepareConfig) -> tuple[Recipe, ...]:
    """The recipe of each source. Raises StageFailure (INVALID_CONFIG) for contradictory settings."""
    if config.rule_version not in RULE_VERSIONS:
        raise _invalid(
            f"the Dataset has rule version {config.rule_version}, and this trainer image has"
            f" {join_names(tuple(map(str, RULE_VERSIONS)))}; use the trainer image of the operator's release"
        )
    if config.template is not None:
        try:
            PromptTemplate.parse(config.template)
        except ValueError as error:
            raise _invalid(f"template: {error}") from error
    return tuple(_recipe_of(source, config) for source in config.sources)


def _recipe_of(source: SourceConfig, config: PrepareConfig) -> Recipe:
    columns = dataclasses.asdict(source.columns)
    named = [name for name in columns.values() if name is not None]
    prompt, completion = source.columns.prompt or "prompt", source.columns.completion or "completion"
    # `columns` of a Dataset is a field of the source, and that of a run is next to it.
    place = source.field.removesuffix("source")
    place += "." if place and not place.endswith(".") else ""
    if config.template is None and prompt == completion:
        raise _invalid(
            f"{place}columns.prompt and {place}columns.completion are both {prompt!r}; name two columns"
        )
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise _invalid(f"{place}columns names {twice!r} twice; name another column")
    return Recipe(
        format=source.format,
        names=FieldNames(**columns, template=config.template),
        splits=source.splits,
        division=config.split,
        cleaning=config.cleaning,
        checks=config.checks,
        kept_columns=config.keep_columns,
        rule_version=config.rule_version,
    )


def preparation_digest(
    config: PrepareConfig, recipes: Sequence[Recipe], found: Sequence[DataFormat | None]
) -> Digest:
    """Digest of everything that was done to the sources, requested or by default.

    `recipes` are the config's, `found` is the detected format of each source.

    Settings at their default are omitted, so that adding a setting later does not change existing digests.
    """
    return digest_of(
        canonical_json.encode(
            {
                "version": VERSION,
                "recipes": [
                    _settings(dataclasses.replace(recipe, format=form))
                    for recipe, form in zip(recipes, found, strict=True)
                ],
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
        if part in KEPT_DEFAULTS or value != defaults[part]
    }


def _invalid(message: str) -> StageFailure:
    return StageFailure(FailureReason.INVALID_CONFIG, message)
