# SPDX-License-Identifier: Apache-2.0
"""What a release pushes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Artifact:
    """An image or a chart in a registry.

    Attributes:
        name: name in messages and files, such as `finetune-trainer-cpu`.
        repository: registry and repository, without tag.
        tags: its tags.
        digest: digest of its manifest.
        bill: its bill of materials; None for a chart.
        base: name of the base image; None for a chart.
    """

    name: str
    repository: str
    tags: tuple[str, ...]
    digest: str
    bill: Path | None = None
    base: str | None = None

    @property
    def reference(self) -> str:
        """Name with the digest."""
        return f"{self.repository}@{self.digest}"
