# SPDX-License-Identifier: Apache-2.0
"""python -m tools.demo: run the demo; `make demo` starts the cluster and builds the images before."""

import sys

from kubernetes.client.exceptions import ApiException
from openai import OpenAIError
from rich.markup import escape
from urllib3.exceptions import HTTPError

from finetune_client import tables
from finetune_client.errors import OperationError
from tools.cluster.commands import ClusterError
from tools.demo.admin_access import AdminAccess
from tools.demo.story import Story
from tools.images.buildah import ImageError


def main() -> int:
    console = tables.console()
    try:
        Story(AdminAccess.from_environment(), console).run()
    except KeyboardInterrupt:
        console.print("\nInterrupted. The objects in the cluster keep running; the next demo removes them.")
        return 130
    except (ClusterError, ImageError, ApiException, HTTPError, OpenAIError) as error:
        console.print(f"\n[red]The demo stopped:[/] {type(error).__name__}: {escape(str(error))}")
        return 1
    except OperationError as error:
        console.print(f"\n[red]The demo stopped:[/] {escape(str(error))}")
        for line in error.details:
            console.print(f"   {line}", style="dim", markup=False, soft_wrap=True)
        if error.commands:
            console.print("Run these commands for details:")
        for command in error.commands:
            console.print(f"   {command}", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
