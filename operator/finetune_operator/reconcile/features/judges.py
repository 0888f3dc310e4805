# SPDX-License-Identifier: Apache-2.0
"""Judges: models that compare the answers of the tuned model with others."""

from typing import Final

from finetune_operator.manifests.volumes import secret_mount
from finetune_operator.reconcile.features.feature import EvaluationFeature, FeatureUse
from finetune_trainer.contract.own_metrics import Judge


def _config(use: FeatureUse) -> tuple[Judge, ...]:
    """The judges as a pod uses them. Without a champion, none compares with it."""
    return tuple(
        Judge(
            **judge.model_dump(exclude={"credentials_secret_ref"}),
            credentials=secret_mount("judge", secret.name if secret else None, number),
        )
        for number, judge in enumerate(use.settings.judges)
        if judge.against != "Live" or use.has_champion
        for secret in (judge.credentials_secret_ref,)
    )


FEATURE: Final = EvaluationFeature(field="judges", config=_config)
