# SPDX-License-Identifier: Apache-2.0
"""Start the operator: settings, logs, signals."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from finetune_operator.engine.client import load_configuration
from finetune_operator.runtime import logs
from finetune_operator.runtime.garbage import exempt_survivors
from finetune_operator.runtime.process import Process
from finetune_operator.runtime.settings import Settings, SettingsError

logger = logging.getLogger(__name__)


async def run(settings: Settings) -> None:
    """Run the operator until SIGTERM or SIGINT."""
    exempt_survivors()
    process = Process(settings, await load_configuration())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop)
    await process.run()
    logger.info("stopped")


def main(arguments: Sequence[str] = ()) -> None:
    """Run the operator. If the process cannot start or continue, it logs why and exits with code 1.

    Args:
        arguments: settings of the command line, as `--SETTING=VALUE`.
    """
    try:
        settings = Settings.from_environment(arguments=arguments)
    except SettingsError as error:
        sys.exit(f"finetune-operator: {error}")
    logs.configure_logs(settings.log_level, settings.log_format)
    try:
        asyncio.run(run(settings))
    except Exception:
        logger.exception("the operator stops after an error and must be restarted")
        sys.exit(1)
