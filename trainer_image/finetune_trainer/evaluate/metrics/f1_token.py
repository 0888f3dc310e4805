# SPDX-License-Identifier: Apache-2.0
"""F1 of the words of an answer and the correct answer, as in SQuAD (Rajpurkar et al., 2016)."""

from collections.abc import Collection


def value(answer: str, accepted: Collection[str]) -> float:
    """Return the F1 of an answer and the most similar correct text; 0 if `accepted` is empty.

    Case, punctuation and English articles are ignored. White space separates words, so an answer in Chinese
    or Japanese is one word.
    """
    from torchmetrics.functional.text import squad

    if not accepted:
        return 0.0
    prediction = {"id": "row", "prediction_text": answer}
    percent = squad(prediction, {"id": "row", "answers": {"text": sorted(accepted)}})["f1"]
    # The result is float32: without rounding, 0.8 would miss a gate of 0.8.
    return round(float(percent) / 100, 6)
