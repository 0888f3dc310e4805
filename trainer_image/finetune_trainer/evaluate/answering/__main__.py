# SPDX-License-Identifier: Apache-2.0
"""Entry point in the image of the engine. Handles signals before slow imports."""

import sys

from finetune_trainer.runtime import signals


def main() -> int:
    """Answer the prompts of the pod. Returns the exit code."""
    signals.exit_before_start()
    from finetune_trainer.evaluate.answering import engine_side

    engine_side.run_in_pod()
    return 0


if __name__ == "__main__":
    sys.exit(main())
