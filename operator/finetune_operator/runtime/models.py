# SPDX-License-Identifier: Apache-2.0
"""Typed views of a store. Each state of an object is parsed once, when it is first read.

Settled objects are many and seldom read, so only the most recently read of their models are kept.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar, cast

from pydantic import ValidationError

from finetune_operator.api.meta import Resource
from finetune_operator.engine.resources import version
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Manifest
from finetune_trainer.contract.base import lenient_validator

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)

MAX_SETTLED_MODELS: Final = 200
"""Number of models of settled objects to keep."""


class Models(Generic[R]):
    """The objects of one kind as models.

    An object with values that only a newer release knows is still parsed, and `unknown` returns their paths.
    An object that cannot be parsed, which the CRDs of this release would have refused, is logged and left
    out.
    """

    def __init__(self, store: ObjectStore, model: type[R]) -> None:
        self._store = store
        self._model = model
        self._unknown: dict[tuple[str, str], tuple[str, ...]] = {}
        self._parsed: dict[tuple[str, str], tuple[int, R | None]] = {}
        self._settled: OrderedDict[tuple[str, str], tuple[int, R | None]] = OrderedDict()
        store.subscribe(self._forget)

    def get(self, namespace: str, name: str) -> R | None:
        known = self._settled.get((namespace, name))
        if known is not None and known[0] == self._store.version_of(namespace, name):
            # This avoids unpacking the object.
            return known[1]
        obj = self._store.get(namespace, name)
        return None if obj is None else self.parse(obj)

    def parse(self, obj: Manifest) -> R | None:
        """The model of this state of an object, or None if it cannot be parsed."""
        metadata = obj["metadata"]
        address = (metadata.get("namespace", ""), metadata["name"])
        state = version(obj)
        is_settled = self._store.is_settled(*address)
        parsed = self._settled if is_settled else self._parsed
        known = parsed.get(address)
        if known is not None and known[0] == state:
            return known[1]
        model = self._validated(obj, address)
        parsed[address] = (state, model)
        if is_settled:
            self._parsed.pop(address, None)
            self._settled.move_to_end(address)
            while len(self._settled) > MAX_SETTLED_MODELS:
                self._settled.popitem(last=False)
        return model

    def unknown(self, obj: Manifest) -> tuple[str, ...]:
        """Paths of the values in this state of an object that only a newer release knows."""
        self.parse(obj)
        metadata = obj["metadata"]
        return self._unknown.get((metadata.get("namespace", ""), metadata["name"]), ())

    def _validated(self, obj: Manifest, address: tuple[str, str]) -> R | None:
        self._unknown.pop(address, None)
        try:
            return self._model.model_validate(obj)
        except ValidationError as error:
            self._unknown[address] = tuple(".".join(map(str, each["loc"])) for each in error.errors())
            return self._leniently(obj, address)

    def _leniently(self, obj: Manifest, address: tuple[str, str]) -> R | None:
        try:
            return cast("R", lenient_validator(self._model).validate_python(obj))
        except ValidationError as error:
            logger.error(  # noqa: TRY400 - the traceback adds nothing to the message
                "cannot read %s %s/%s and ignores it; apply the CRDs of this release: %s",
                self._model.__name__,
                *address,
                error,
            )
            return None

    def all(self) -> Iterator[R]:
        for obj in self._store:
            model = self.parse(obj)
            if model is not None:
                yield model

    def indexed(self, index: str, value: str) -> Iterable[R]:
        """Objects by an index of the store. Evaluated lazily, and can be iterated repeatedly."""
        return _Indexed(self, self._store, index, value)

    def named(self, namespace: str) -> Mapping[str, R]:
        """Objects of a namespace, by name. Evaluated lazily."""
        return _Named(self, namespace)

    def names(self, namespace: str) -> list[str]:
        """Names of the objects of a namespace, including those that cannot be parsed."""
        return list(self._store.names(namespace))

    def _forget(self, old: Manifest | None, new: Manifest | None) -> None:
        if old is not None and new is None:
            address = (old["metadata"].get("namespace", ""), old["metadata"]["name"])
            self._parsed.pop(address, None)
            self._settled.pop(address, None)
            self._unknown.pop(address, None)


class _Indexed(Iterable[R]):
    def __init__(self, models: Models[R], store: ObjectStore, index: str, value: str) -> None:
        self._models = models
        self._store = store
        self._index = index
        self._value = value

    def __iter__(self) -> Iterator[R]:
        for obj in tuple(self._store.indexed(self._index, self._value).values()):
            model = self._models.parse(obj)
            if model is not None:
                yield model


class _Named(Mapping[str, R]):
    def __init__(self, models: Models[R], namespace: str) -> None:
        self._models = models
        self._namespace = namespace

    def __getitem__(self, name: str) -> R:
        model = self._models.get(self._namespace, name)
        if model is None:
            raise KeyError(name)
        return model

    def __iter__(self) -> Iterator[str]:
        names = self._models.names(self._namespace)
        return (name for name in names if self._models.get(self._namespace, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
