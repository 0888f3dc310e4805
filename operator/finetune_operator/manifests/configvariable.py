# SPDX-License-Identifier: Apache-2.0
"""The environment variable with the config of a container."""

from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.environment import CONFIG_ENV


def config_variable(config: Contract) -> dict[str, str]:
    r"""The config as JSON, with each `$` as `\u0024`.

    In values of variables, Kubernetes replaces `$$` by `$`, and `$(NAME)` by a variable. A text of the user
    would then be another one in the pod, and the digest of the pod's config not that of the Job.
    """
    # All `$` of a JSON text are within strings.
    return {"name": CONFIG_ENV, "value": config.to_json().replace("$", r"\u0024")}


def literal(argument: str) -> str:
    """An item of a container's command or arguments, which Kubernetes would expand in the same way."""
    return argument.replace("$", "$$")
