# SPDX-License-Identifier: Apache-2.0
"""The model thread, pass by pass: requests that get a slot, wait, leave and fail."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_trainer.serve.engine import Engine
from finetune_trainer.serve.generation import (
    EngineRequest,
    Event,
    GenerationFailed,
    GenerationFinished,
    Sampling,
    Token,
)
from finetune_trainer.serve.loading import LoadedModels, load
from tests.trainer.serve.endpoint import DEADLINE_SECONDS, serve_config, wait_until


class Gate(torch.nn.Module):
    """A model that runs a pass only when a test permits it, and fails on demand."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.passes = threading.Semaphore(0)
        self.batch_sizes: list[int] = []
        self.broken_by: int | None = None
        """A token id whose presence in the input fails the pass."""
        self.overflow_by: int | None = None
        """A token id after which the logits of a row are not finite."""

    def forward(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        assert self.passes.acquire(timeout=DEADLINE_SECONDS)
        self.batch_sizes.append(len(input_ids))
        if self.broken_by is not None and (input_ids == self.broken_by).any():
            raise RuntimeError("out of memory")
        output = self.model(input_ids=input_ids, **inputs)
        if self.overflow_by is not None:
            output.logits[(input_ids == self.overflow_by).any(dim=-1)] = float("nan")
        return output


class Asked:
    """One request and its events."""

    def __init__(
        self,
        engine: Engine,
        prompt: list[int],
        max_tokens: int,
        temperature: float = 0,
        *,
        returning: bool = False,
    ) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.generation = EngineRequest("base", prompt, Sampling(max_tokens, temperature), self.events.put)
        self.accepted = engine.submit(self.generation, returning=returning) is None

    def next(self) -> Event:
        return self.events.get(timeout=DEADLINE_SECONDS)

    def tokens(self) -> int:
        return sum(isinstance(event, Token) for event in list(self.events.queue))


class Rig:
    """An engine with two slots and a queue of two."""

    def __init__(self, engine: Engine, gate: Gate) -> None:
        self.engine = engine
        self.gate = gate

    def ask(self, max_tokens: int, token: int = 10, *, returning: bool = False) -> Asked:
        return Asked(self.engine, [token] * 3, max_tokens, returning=returning)

    def let(self, passes: int) -> None:
        before = len(self.gate.batch_sizes)
        self.gate.passes.release(passes)
        wait_until(lambda: len(self.gate.batch_sizes) == before + passes)


@pytest.fixture(scope="module")
def served(root: Path) -> LoadedModels:
    return load(serve_config(root, models=()))


@pytest.fixture
def rig(served: LoadedModels) -> Iterator[Rig]:
    gate = Gate(served.model)
    # Without stop tokens, only lengths end these answers.
    engine = Engine(
        replace(served, model=gate, stop_ids=frozenset()),
        max_batch_size=2,
        max_queue=2,
    )
    engine.start()
    with released_at_the_end(engine, gate):
        yield Rig(engine, gate)


@contextmanager
def released_at_the_end(engine: Engine, gate: Gate) -> Iterator[None]:
    try:
        yield
    finally:
        gate.passes.release(1000)
        engine.stop()


def test_a_short_request_joins_and_leaves_while_a_long_one_runs(rig: Rig) -> None:
    long = rig.ask(max_tokens=100)
    rig.let(5)
    short = rig.ask(max_tokens=3)
    # A pass of the long one alone may have started. Then comes the prefill, and two steps for the rest.
    rig.let(4)

    assert isinstance(short.next(), Token)
    assert isinstance(short.next(), Token)
    end = short.next()
    assert isinstance(end, GenerationFinished)
    assert (end.reason, end.completion_tokens) == ("length", 3)
    wait_until(lambda: rig.engine.running == 1)
    assert long.tokens() < 20


def test_requests_that_wait_together_are_read_in_one_pass_and_share_every_step(rig: Rig) -> None:
    blocker = rig.ask(max_tokens=1)
    wait_until(lambda: rig.engine.waiting == 0)
    first, second = rig.ask(max_tokens=2), rig.ask(max_tokens=2)
    rig.let(3)

    assert isinstance(blocker.next(), GenerationFinished)
    assert rig.gate.batch_sizes == [1, 2, 2]
    for asked in (first, second):
        assert isinstance(asked.next(), Token)
        assert isinstance(asked.next(), GenerationFinished)


def test_a_long_prompt_is_read_alone(rig: Rig) -> None:
    rig.ask(max_tokens=1)
    wait_until(lambda: rig.engine.waiting == 0)
    short = rig.ask(max_tokens=2)
    long = Asked(rig.engine, [10] * 1000, max_tokens=1)
    rig.let(4)

    assert rig.gate.batch_sizes == [1, 1, 1, 1]
    assert isinstance(short.next(), Token)
    assert isinstance(short.next(), GenerationFinished)
    assert isinstance(long.next(), GenerationFinished)


def test_more_than_the_queue_holds_is_refused_and_a_place_that_frees_is_kept_for_it(rig: Rig) -> None:
    running = [rig.ask(max_tokens=2)]
    wait_until(lambda: rig.engine.waiting == 0)
    waiting = [rig.ask(max_tokens=2), rig.ask(max_tokens=2)]

    assert not rig.ask(max_tokens=2).accepted
    rig.engine.cancel(waiting[0].generation)
    assert not rig.ask(max_tokens=2).accepted
    replacement = rig.ask(max_tokens=2, returning=True)
    assert replacement.accepted
    rig.gate.passes.release(100)
    for asked in (*running, waiting[1], replacement):
        assert isinstance(asked.next(), Token)
        assert isinstance(asked.next(), GenerationFinished)
    assert waiting[0].events.empty()


def test_answers_of_one_request_are_queued_together_or_not_at_all(rig: Rig) -> None:
    rig.ask(max_tokens=2)
    wait_until(lambda: rig.engine.waiting == 0)
    rig.ask(max_tokens=2)
    events: queue.Queue[Event] = queue.Queue()
    pair = [EngineRequest("base", [10] * 3, Sampling(2), events.put) for _ in range(2)]

    assert rig.engine.submit(*pair) is not None
    assert rig.engine.waiting == 1
    rig.gate.passes.release(100)
    wait_until(lambda: rig.engine.waiting == 0)
    assert rig.engine.submit(*pair) is None
    ends = [events.get(timeout=DEADLINE_SECONDS) for _ in range(4)]
    assert sum(isinstance(event, GenerationFinished) for event in ends) == 2


def test_an_empty_queue_has_room_for_more_answers_than_it_keeps(rig: Rig) -> None:
    events: queue.Queue[Event] = queue.Queue()
    rig.gate.passes.release(100)

    triple = (EngineRequest("base", [10] * 3, Sampling(1), events.put) for _ in range(3))
    assert rig.engine.submit(*triple) is None
    assert all(isinstance(events.get(timeout=DEADLINE_SECONDS), GenerationFinished) for _ in range(3))


def test_a_cancelled_request_leaves_the_batch_at_the_next_pass(rig: Rig) -> None:
    leaving, staying = rig.ask(max_tokens=100), rig.ask(max_tokens=100)
    rig.let(4)
    rig.engine.cancel(leaving.generation)
    rig.let(3)

    assert rig.gate.batch_sizes[-1] == 1
    assert rig.engine.running == 1
    wait_until(lambda: staying.tokens() > leaving.tokens())


def test_a_prompt_that_breaks_the_model_fails_alone(rig: Rig) -> None:
    rig.gate.broken_by = 77
    healthy = rig.ask(max_tokens=50)
    rig.let(2)
    poison = rig.ask(max_tokens=50, token=77)
    rig.let(3)

    assert poison.next() == GenerationFailed()
    wait_until(lambda: healthy.tokens() >= 3)
    assert rig.engine.running == 1


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_row_whose_logits_are_no_numbers_fails_alone(rig: Rig, temperature: float) -> None:
    rig.gate.overflow_by = 77
    healthy = rig.ask(max_tokens=50)
    rig.let(2)
    overflowing = Asked(rig.engine, [77] * 3, max_tokens=50, temperature=temperature)
    rig.let(3)

    assert overflowing.next() == GenerationFailed()
    wait_until(lambda: healthy.tokens() >= 3)
    assert rig.engine.running == 1


def test_a_pass_that_fails_ends_its_requests_and_the_engine_goes_on(rig: Rig, served: LoadedModels) -> None:
    first = rig.ask(max_tokens=50)
    rig.let(1)
    assert isinstance(first.next(), Token)
    rig.gate.broken_by = first_token(served)
    rig.let(1)
    assert first.next() == GenerationFailed()

    rig.gate.broken_by = None
    second = rig.ask(max_tokens=1)
    rig.let(1)
    assert isinstance(second.next(), GenerationFinished)


def first_token(served: LoadedModels) -> int:
    with torch.inference_mode():
        return int(served.model(input_ids=torch.tensor([[10] * 3])).logits[0, -1].argmax())


def test_stopping_fails_what_is_left_instead_of_leaving_it_without_an_answer(rig: Rig) -> None:
    running = rig.ask(max_tokens=100)
    rig.let(1)
    stopping = threading.Thread(target=rig.engine.stop)
    stopping.start()
    rig.gate.passes.release(10)
    stopping.join()

    events = [running.next()]
    while not isinstance(events[-1], GenerationFailed):
        events.append(running.next())
    assert not rig.engine.alive
    assert rig.ask(max_tokens=1).next() == GenerationFailed()
