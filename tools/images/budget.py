"""How large each image may be; an image that grows beyond it is not handed out."""

from typing import Final

from tools.images.errors import ImageError

MEBIBYTE: Final = 1 << 20
BUDGETS: Final = {
    "finetune-operator": 360 * MEBIBYTE,
    # 100 MiB of it are SciPy, which datasketch takes for the hashes that tell near duplicates.
    "finetune-trainer-cpu": 2200 * MEBIBYTE,
    # 200 MiB of it are the C compiler that Triton needs.
    "finetune-trainer-cuda": 7700 * MEBIBYTE,
}
"""Bytes of all files, uncompressed, base included."""


def spent(image: str, used: int) -> str:
    """How much of its budget the image, a key of `BUDGETS`, uses, in words.

    Raises:
        ImageError: it is too large.
    """
    budget = BUDGETS[image]
    said = f"{image}: {used / MEBIBYTE:,.0f} MiB of {budget / MEBIBYTE:,.0f} MiB"
    if used > budget:
        raise ImageError(
            f"{said}: the image is too large. See what was added to its constraints, or raise its budget in"
            " tools/images/budget.py and say why"
        )
    return said
