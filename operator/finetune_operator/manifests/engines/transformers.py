# SPDX-License-Identifier: Apache-2.0
"""The built-in engine: a stage of the trainer image."""

from finetune_operator.manifests.engines.engine_inputs import ServingConfig
from finetune_operator.manifests.trainer_config import config_variable
from finetune_operator.plan import Manifest
from finetune_trainer.contract.environment import SCRATCH_MOUNT, SERVE_PORT


def transformers_container(config: ServingConfig) -> Manifest:
    """Environment, ports and probe of the engine's container."""
    return {
        "env": [
            config_variable(config.serve),
            {"name": "HOME", "value": SCRATCH_MOUNT},
        ],
        "ports": [{"name": "http", "containerPort": SERVE_PORT}],
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": SERVE_PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
        },
    }
