# SPDX-License-Identifier: Apache-2.0
"""Containers of an evaluate pod in which a serving engine generates the answers.

They run before the trainer, one after the other, so that each has all devices of the pod, and none needs a
second set of them: `prompts`, of the trainer image, writes what to answer; `answers`, of the engine's image,
answers it.
"""

import signal
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.pod_resources import CPU
from finetune_operator.manifests.answerservers import answer_servers
from finetune_operator.manifests.configvariable import config_variable
from finetune_operator.manifests.engines.enginetable import engine_of, engine_resources
from finetune_operator.manifests.podsizing import SCRATCH_LIMIT, PodSizing, disk_volume
from finetune_operator.manifests.security import container_security
from finetune_operator.plan import Manifest
from finetune_trainer.contract.configs import AnswersConfig, EvaluateConfig, PromptsConfig
from finetune_trainer.contract.environment import (
    ANSWERS_MODULE,
    ANSWERS_MOUNT,
    ANSWERS_PYTHONPATH,
    STORE_MOUNT,
    TERMINATION_MESSAGE_PATH,
)
from finetune_trainer.contract.evaluation import AnswerEngine
from finetune_trainer.contract.vocabulary import ExitCode

PROMPTS_CONTAINER: Final = "prompts"
ANSWERS_CONTAINER: Final = "answers"
ANSWER_CONTAINERS: Final = (PROMPTS_CONTAINER, ANSWERS_CONTAINER)
"""Init containers of a stage, in their order."""
ENDED_BY_SIGTERM: Final = (ExitCode.PREEMPTED_SAVED, 128 + signal.SIGTERM)
"""Exit codes of these containers after SIGTERM. The next pod answers again what is not measured."""
MOUNT: Final[Manifest] = {"name": "answers", "mountPath": ANSWERS_MOUNT}


def separate_engine(config: object) -> AnswerEngine | None:
    """The engine whose containers the pod of this config has; None if it has none."""
    engine = config.answer_engine if isinstance(config, EvaluateConfig) else None
    return engine if engine is not None and engine.is_separate else None


def with_answers(
    pod: Manifest, config: EvaluateConfig, profile: ComputeProfile, devices: int, sizing: PodSizing
) -> Manifest:
    """The pod of the trainer, with the containers that run before it and the volume that they share.

    Unchanged if the trainer generates the answers.
    """
    engine = separate_engine(config)
    if engine is None:
        return pod
    (trainer,) = pod["containers"]
    reading = {**trainer, "volumeMounts": [*trainer["volumeMounts"], {**MOUNT, "readOnly": True}]}
    return {
        **pod,
        "initContainers": [
            _prompts(trainer, config),
            _answers(trainer, config, engine, profile, devices),
        ],
        "containers": [reading],
        "volumes": [
            *pod["volumes"],
            disk_volume("answers", sizing.resources, SCRATCH_LIMIT),
        ],
    }


def _prompts(trainer: Manifest, config: EvaluateConfig) -> Manifest:
    """As the trainer, without devices."""
    needed = {"cpu", "memory", "ephemeral-storage"}
    resources = {
        kind: {name: value for name, value in values.items() if name in needed}
        for kind, values in trainer["resources"].items()
    }
    prompts = PromptsConfig(contract=config.contract, evaluate=config)
    _, *environment = trainer["env"]
    return {
        **trainer,
        "name": PROMPTS_CONTAINER,
        "env": [config_variable(prompts), *environment],
        "resources": resources,
        "volumeMounts": [*trainer["volumeMounts"], MOUNT],
    }


def _answers(
    trainer: Manifest, config: EvaluateConfig, engine: AnswerEngine, profile: ComputeProfile, devices: int
) -> Manifest:
    """The engine, which gets of the store only the right to read it, and no credentials and tokens."""
    accelerators = devices if profile.spec.accelerator.resource != CPU else 0
    answers = AnswersConfig(
        contract=config.contract,
        servers=answer_servers(config, accelerators),
        step_timeout_seconds=config.step_timeout_seconds,
    )
    shared = [mount for mount in trainer["volumeMounts"] if mount["name"] in {"scratch", "shared-memory"}]
    row = engine_of(profile)
    environment = row.answering.environment(ANSWERS_PYTHONPATH) if row.answering is not None else []
    return {
        "name": ANSWERS_CONTAINER,
        "image": engine.image,
        "imagePullPolicy": trainer["imagePullPolicy"],
        "command": ["python3", "-m", ANSWERS_MODULE],
        "env": [config_variable(answers), *environment],
        "resources": engine_resources(profile, devices, row.default_resources),
        "terminationMessagePath": TERMINATION_MESSAGE_PATH,
        "terminationMessagePolicy": "File",
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "store", "mountPath": STORE_MOUNT, "readOnly": True},
            *shared,
            MOUNT,
        ],
    }
