# SPDX-License-Identifier: Apache-2.0
"""Process that prepares batches: python -m finetune_trainer.data.row_worker, started by `batches`."""

import os
import pickle
import sys
import traceback

from finetune_trainer.data.batches import PreparedBatch, Preparer


def main() -> None:
    """Read the recipes and then batches from standard input until it ends; write the result of each batch."""
    requests, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # Output of libraries must not mix with the results.
    os.dup2(2, 1)
    preparer = Preparer(pickle.load(requests))  # noqa: S301 - from the process that started this one
    while True:
        try:
            batch = pickle.load(requests)  # noqa: S301
        except EOFError:
            return
        found: PreparedBatch | Exception
        try:
            found = preparer.prepare(batch)
        except Exception as error:  # noqa: BLE001 - raised by the process that reads the results
            error.add_note(f"In a worker process:\n{traceback.format_exc()}")
            found = error
        pickle.dump(found, results, pickle.HIGHEST_PROTOCOL)
        results.flush()


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        # The process that started this one has ended.
        os._exit(1)
