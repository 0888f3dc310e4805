"""Start of every trainer process; handles signals before it imports what takes time."""

import sys

from finetune_trainer.runtime import signals


def main() -> int:
    """Run what the config says; the exit code is one of `ExitCode`, or 128 + a signal's number."""
    signals.exit_before_start()
    from finetune_trainer.entrypoint import cli

    return cli.run()


if __name__ == "__main__":
    sys.exit(main())
