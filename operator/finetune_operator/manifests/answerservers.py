# SPDX-License-Identifier: Apache-2.0
"""The servers of an engine for the subjects of an evaluation: one per base model or whole model."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from finetune_operator.manifests.engines.answeringengine import AnsweredModels
from finetune_operator.manifests.engines.enginetable import ENGINES
from finetune_trainer.contract.configs import AnswerServer, EvaluateConfig
from finetune_trainer.contract.environment import BASE_FOLDER, LIVE_BASE_FOLDER, LIVE_FOLDER, TUNED_FOLDER
from finetune_trainer.contract.vocabulary import FULL_MODEL, Subject


@dataclass
class _Loaded:
    """What one server loads."""

    adapters: list[str] = field(default_factory=list)
    subjects: dict[Subject, str] = field(default_factory=dict)


def answer_servers(config: EvaluateConfig, accelerators: int) -> tuple[AnswerServer, ...]:
    """The servers, in the order of the subjects; none if the trainer generates the answers.

    Args:
        config: config of the stage.
        accelerators: accelerators of the pod; 0 if devices are CPU cores.
    """
    engine = config.answer_engine
    answering = ENGINES[engine.name].answering if engine is not None else None
    if engine is None or answering is None:
        return ()
    servers: dict[str, _Loaded] = {}
    for subject, name, adapter in _weights(config):
        server = servers.setdefault(name, _Loaded())
        server.subjects[subject] = adapter or name
        if adapter is not None:
            server.adapters.append(adapter)
    return tuple(
        AnswerServer(
            command=tuple(
                answering.command(
                    AnsweredModels(
                        name=name,
                        adapters=tuple(server.adapters),
                        max_rank=engine.max_lora_rank or 0,
                        accelerators=accelerators,
                        arguments=engine.arguments,
                    )
                )
            ),
            models={
                subject: BASE_FOLDER if model == name and server.adapters else model
                for subject, model in server.subjects.items()
            },
        )
        for name, server in servers.items()
    )


def _weights(config: EvaluateConfig) -> Iterator[tuple[Subject, str, str | None]]:
    """Each subject with its folder of a base or whole model, and that of its adapter."""
    for subject in config.subjects:
        if subject == "Live" and config.live is not None:
            base = BASE_FOLDER if config.live.base_model == config.base_model else LIVE_BASE_FOLDER
            type_, own = config.live.type, LIVE_FOLDER
        elif subject == "Tuned":
            type_, base, own = config.checkpoint_type, BASE_FOLDER, TUNED_FOLDER
        else:
            type_, base, own = FULL_MODEL, BASE_FOLDER, BASE_FOLDER
        yield (subject, own, None) if type_ == FULL_MODEL else (subject, base, own)
