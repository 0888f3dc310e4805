# SPDX-License-Identifier: Apache-2.0
"""Size budgets of the images; an image that exceeds its budget is not delivered."""

from typing import Final

from tools.images.errors import ImageError

MEBIBYTE: Final = 1 << 20
BUDGETS: Final = {
    "finetune-operator": 360 * MEBIBYTE,
    # SciPy takes 100 MiB; datasketch needs it for the hashes of near duplicates.
    "finetune-trainer-cpu": 2200 * MEBIBYTE,
    # The C compiler that Triton needs takes 200 MiB.
    "finetune-trainer-cuda": 7700 * MEBIBYTE,
}
"""Maximum bytes of all files, uncompressed, including the base image."""


def check_budget(image: str, size: int) -> str:
    """Size and budget of the image as text.

    Args:
        image: a key of `BUDGETS`.
        size: its size in bytes.

    Raises:
        ImageError: it is too large.
    """
    budget = BUDGETS[image]
    text = f"{image}: {size / MEBIBYTE:,.0f} MiB of {budget / MEBIBYTE:,.0f} MiB"
    if size > budget:
        raise ImageError(
            f"{text}: the image is too large. Check the packages that were added to its constraints, or raise"
            " its budget in tools/images/budget.py and give the reason there"
        )
    return text
