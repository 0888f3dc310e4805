# SPDX-License-Identifier: Apache-2.0
"""What reaches each branch of the trainer that only a GPU takes: the only table of them.

tests/trainer/test_gpu_branches.py finds the branches: comparisons of the type of a device, `torch.cuda` and
`is_cuda`. A new one needs a row here.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple


class Reached(NamedTuple):
    """A test that takes the branch on a CPU, or the step that takes it on a GPU and why only a GPU can."""

    emulated_by: str | None = None
    """File and name of the test."""
    step: str | None = None
    reason: str | None = None


_ON_THE_PATH: Final = (
    "tests/trainer/test_train_on_a_gpu.py::test_every_kind_of_run_trains_validates_and_publishes"
)
_DEVICE: Final = "tests/trainer/test_model_device.py"

BRANCHES: Final[Mapping[str, Reached]] = {
    "distributed/distributed_group.py:_connect": Reached(
        step="ddp", reason="NCCL connects GPUs only; processes on a CPU use gloo."
    ),
    "model/completion_loss.py:ChunkedHead.__init__": Reached(_ON_THE_PATH, "numbers"),
    "model/completion_loss.py:tiled_losses": Reached(_ON_THE_PATH, "numbers"),
    "model/device.py:check_accelerators": Reached(
        "tests/trainer/test_accelerators.py::test_a_card_without_bfloat16_fails_at_once_with_its_name"
    ),
    "model/device.py:choose_device": Reached(
        f"{_DEVICE}::test_each_process_of_a_pod_has_its_share_of_the_processors"
    ),
    "model/device.py:frozen_dtype": Reached(
        f"{_DEVICE}::test_weights_that_are_not_trained_are_bfloat16_on_a_gpu_whatever_is_stored"
    ),
    "model/device.py:memory_use": Reached(
        step="out-of-memory",
        reason="The driver's figures exist on a GPU only. They are read when its memory is exhausted.",
    ),
    "model/device.py:mixes_precision": Reached(_ON_THE_PATH, "method-LoRA"),
    "model/device.py:multiplies_bfloat16": Reached(
        "tests/trainer/test_model_load.py::test_a_gpu_multiplies_it_and_of_a_cpu_pytorch_tells",
        "method-QLoRA",
    ),
    "model/device.py:peak_memory": Reached(
        step="method-LoRA",
        reason="PyTorch counts memory of tensors on a GPU only; the steps compare it with its prediction.",
    ),
    "model/device.py:release_memory": Reached(f"{_DEVICE}::test_the_peak_of_a_failed_attempt_is_forgotten"),
    "model/loading.py:load_quantized_base": Reached(
        step="numbers",
        reason="The branch turns off a form of weights that exists on CPUs only; a GPU has other kernels.",
    ),
    "model/loading.py:visible_devices": Reached(
        "tests/trainer/test_model_placement.py::test_all_accelerators_that_the_process_sees_are_used"
    ),
    "model/probe.py:forward_dtype": Reached(
        step="evaluate-and-serve",
        reason="It names the precision of a record that a GPU makes; a CPU's record is in its own dtype.",
    ),
    "train/collation.py:choose_budget": Reached(_ON_THE_PATH, "method-LoRA"),
    "train/states/snapshot.py:collect_whole": Reached(
        step="interrupted",
        reason="Weights of a GPU are copied to the host in a save; those of a CPU may be written in place.",
    ),
    "train/trainer.py:FullyShardedTrainer.collect_state": Reached(
        step="fsdp-full",
        reason="Shards of a GPU are copied to the host in a save; those of a CPU may be written in place.",
    ),
    "train/trainer.py:training_arguments": Reached(
        "tests/trainer/test_train_on_a_gpu.py::test_a_process_that_sees_several_gpus_uses_one"
    ),
    "train/training_metrics.py:TrainingMetrics.__init__": Reached(
        step="method-LoRA", reason="The gauges of a GPU's memory exist where there is one."
    ),
    "train/training_metrics.py:TrainingMetrics._show_memory": Reached(
        step="method-LoRA", reason="They read the properties of the GPU when they are made."
    ),
}
"""By file and function, from the package of the trainer on."""
