# SPDX-License-Identifier: Apache-2.0
"""The number of optimizer steps of a run."""


def steps_per_epoch(
    rows: int, per_device_batch_size: int, gradient_accumulation_steps: int, processes: int = 1
) -> int:
    """Optimizer steps per epoch. The last step may have fewer batches, and its last batch fewer rows."""
    batches = -(-rows // per_device_batch_size)
    return -(-batches // (gradient_accumulation_steps * processes))
