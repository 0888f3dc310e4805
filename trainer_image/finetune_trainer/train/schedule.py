# SPDX-License-Identifier: Apache-2.0
"""The number of optimizer steps of a run, and how the rows of a step are divided."""


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps per epoch. The last step may have fewer rows."""
    return -(-rows // batch_size)


def run_steps(rows: int, batch_size: int, epochs: int, max_steps: int | None = None) -> int:
    """Optimizer steps of a run, which ends after `epochs` or after `max_steps`, whichever comes first."""
    steps = epochs * steps_per_epoch(rows, batch_size)
    return steps if max_steps is None else min(steps, max_steps)


def rows_read(rows: int, batch_size: int, epochs: int, max_steps: int | None = None) -> int:
    """Rows that a run reads in all of its steps, repeated ones included."""
    read = epochs * rows
    return read if max_steps is None else min(read, max_steps * batch_size)


def max_process_rows(batch_size: int, processes: int) -> int:
    """Max rows of a process in an optimizer step of `batch_size` rows."""
    return -(-batch_size // processes)


def batch_sizes(rows: int, processes: int, max_rows: int | None) -> list[int]:
    """Rows of each batch of an optimizer step, ascending, if process r computes every n-th batch from r on.

    There are as few batches as `max_rows` rows per batch allow. Their sizes differ by at most 1, and so do
    the numbers of rows per process. No batch is empty, so with fewer rows than processes some have none.
    """
    if not rows:
        return []
    of_process = max_process_rows(rows, processes)
    rounds = -(-of_process // (max_rows or of_process))
    small, larger = divmod(rows, count := min(rows, rounds * processes))
    return [small] * (count - larger) + [small + 1] * larger


def largest_batch(batch_size: int, processes: int, max_rows: int | None) -> int:
    """Rows of the largest batch of an optimizer step of `batch_size` rows."""
    return batch_sizes(batch_size, processes, max_rows)[-1]
