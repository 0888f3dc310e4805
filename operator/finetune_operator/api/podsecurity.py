# SPDX-License-Identifier: Apache-2.0
"""User and groups of pods."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model

Id = Annotated[int, Field(ge=1, le=2147483647)]
"""A uid or gid other than root's."""


class PodUser(Model):
    """User and groups of pods, as fields of v1.PodSecurityContext. A field that is absent is not set."""

    run_as_user: Annotated[Id | None, Field(description="uid of the processes.")] = None
    run_as_group: Annotated[Id | None, Field(description="Primary gid of the processes.")] = None
    fs_group: Annotated[Id | None, Field(description="gid that owns the files of volumes.")] = None
    supplemental_groups: Annotated[
        tuple[Id, ...],
        Field(max_length=16, description="Further gids of the processes, such as that of an NFS export."),
    ] = ()
