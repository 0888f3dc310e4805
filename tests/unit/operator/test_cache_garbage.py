# SPDX-License-Identifier: Apache-2.0
"""Full garbage collections walk over new objects only, and a complete one frees what they left."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from finetune_operator.engine import cache_memory


class Node:
    """An object that can be part of a cycle."""

    def __init__(self) -> None:
        self.itself: Node | None = None


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    gc.callbacks.remove(cache_memory._exempt)
    gc.unfreeze()


def test_a_full_collection_exempts_what_survived_it() -> None:
    cache_memory.exempt_survivors()
    kept = [Node() for _ in range(1000)]

    gc.collect(1)
    assert any(each is kept[0] for each in gc.get_objects(generation=2))
    gc.collect()

    assert not any(each is kept[0] for each in gc.get_objects())
    assert gc.get_freeze_count() > len(kept)


def test_a_complete_collection_frees_an_exempted_cycle() -> None:
    cache_memory.exempt_survivors()
    node = Node()
    node.itself = node
    gone = weakref.ref(node)
    gc.collect()
    del node
    gc.collect()
    assert gone() is not None

    cache_memory.collect_completely()

    assert gone() is None


def test_it_is_set_up_once() -> None:
    cache_memory.exempt_survivors()
    cache_memory.exempt_survivors()
    assert gc.callbacks.count(cache_memory._exempt) == 1
