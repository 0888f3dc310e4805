# SPDX-License-Identifier: Apache-2.0
"""Why a step did not show what it should."""


class GPUCheckFailed(Exception):
    """The step ran, and the product did something else than it should."""


class StepNotPossible(Exception):
    """This machine lacks what the step needs, for example a package; the message names it."""
