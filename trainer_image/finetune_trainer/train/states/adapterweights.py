# SPDX-License-Identifier: Apache-2.0
"""The weights of an adapter in training."""

from collections.abc import Mapping

from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor


def adapter_weights(model: PeftModel) -> Mapping[str, Tensor]:
    """The trained weights of an adapter, with the names that PEFT stores; not copies. Not collective."""
    # PEFT would take the state of the whole model, and compare weights that are sharded across processes.
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    weights: Mapping[str, Tensor] = get_peft_model_state_dict(model, trained, save_embedding_layers=False)
    return weights
