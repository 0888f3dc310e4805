# SPDX-License-Identifier: Apache-2.0
"""Why a step did not show what it should."""

from collections.abc import Mapping


class GPUCheckFailed(Exception):
    """The step ran, and the product did something else than it should. `figures` are kept with the reason."""

    def __init__(self, why: str, figures: Mapping[str, float | int | str] | None = None) -> None:
        super().__init__(why)
        self.figures = dict(figures or {})


class StepNotPossible(Exception):
    """This machine lacks what the step needs, for example a second GPU; the message names it."""
