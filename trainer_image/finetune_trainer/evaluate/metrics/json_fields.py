# SPDX-License-Identifier: Apache-2.0
"""Mean share of the expected fields of a JSON answer that are right."""

from collections.abc import Collection

from finetune_trainer.evaluate.examples import Example
from finetune_trainer.scoring.json_text import are_equal_leaves, has_json, leaves, parse_fenced


def value(answer: str, accepted: Collection[str]) -> float:
    """Return the share of the fields and elements of the most similar correct text that the answer has.

    Objects and lists are compared by their innermost values, lists by position. More fields in the answer do
    not count. JSON in a Markdown code block is read, because this measures content. 0 without JSON.
    """
    try:
        answered = dict(leaves(parse_fenced(answer)))
    except ValueError:
        return 0.0
    expected = (list(leaves(parse_fenced(text))) for text in accepted if has_json(text))
    shares = (
        sum(path in answered and are_equal_leaves(answered[path], leaf) for path, leaf in of_text)
        / len(of_text)
        for of_text in expected
    )
    return max(shares, default=0.0)


def count_json(example: Example) -> int:
    """Return the weight of a row: 0 if no correct text is JSON."""
    return int(any(map(has_json, example.accepted)))
