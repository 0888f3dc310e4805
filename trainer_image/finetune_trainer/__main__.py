# SPDX-License-Identifier: Apache-2.0
"""Entry point of every trainer process. Handles signals before slow imports."""

import sys

from finetune_trainer.runtime import signals


def main() -> int:
    """Run the stage of the config. Returns an `ExitCode`, or 128 + a signal's number."""
    signals.exit_before_start()
    from finetune_trainer.entrypoint import process

    return process.run_command_line()


if __name__ == "__main__":
    sys.exit(main())
