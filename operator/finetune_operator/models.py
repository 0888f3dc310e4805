"""Typed views of a store: each object is parsed when it is first read, once for each of its states.

Of settled objects, which are many and seldom read, only the models that were read last are kept.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Generic, TypeVar

from pydantic import ValidationError

from finetune_operator.api.meta import Resource
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Manifest

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)

SETTLED_KEPT: Final = 200
"""Models of settled objects that are kept."""


class Models(Generic[R]):
    """The objects of one kind as models.

    An object that this version cannot read, which the CRDs of this version would have refused, is logged
    and left out.
    """

    def __init__(self, store: ObjectStore, model: type[R]) -> None:
        self._store = store
        self._model = model
        self._parsed: dict[tuple[str, str], tuple[str, R | None]] = {}
        self._settled: OrderedDict[tuple[str, str], tuple[str, R | None]] = OrderedDict()
        store.subscribe(self._forget)

    def get(self, namespace: str, name: str) -> R | None:
        obj = self._store.get(namespace, name)
        return None if obj is None else self.parse(obj)

    def parse(self, obj: Manifest) -> R | None:
        """The model of this state of an object, or None where it cannot be read."""
        metadata = obj["metadata"]
        address = (metadata.get("namespace", ""), metadata["name"])
        state = f"{metadata['uid']}/{metadata['resourceVersion']}"
        is_settled = self._store.is_settled(*address)
        parsed = self._settled if is_settled else self._parsed
        known = parsed.get(address)
        if known is not None and known[0] == state:
            return known[1]
        model = self._validated(obj)
        parsed[address] = (state, model)
        if is_settled:
            self._parsed.pop(address, None)
            while len(self._settled) > SETTLED_KEPT:
                self._settled.popitem(last=False)
        return model

    def _validated(self, obj: Manifest) -> R | None:
        try:
            return self._model.model_validate(obj)
        except ValidationError as error:
            logger.error(  # noqa: TRY400 - the traceback says nothing that the message does not
                "%s %s/%s is left out, apply the CRDs of this release: %s",
                self._model.__name__,
                obj["metadata"].get("namespace", ""),
                obj["metadata"]["name"],
                error,
            )
            return None

    def all(self) -> Iterator[R]:
        for obj in self._store:
            model = self.parse(obj)
            if model is not None:
                yield model

    def indexed(self, index: str, value: str) -> Iterable[R]:
        """Objects by an index of the store; costs nothing until it is read, and may be read again."""
        return _Indexed(self, self._store, index, value)

    def named(self, namespace: str) -> Mapping[str, R]:
        """One namespace's objects by name; costs nothing until it is read."""
        return _Named(self, self._store.names(namespace))

    def _forget(self, old: Manifest | None, new: Manifest | None) -> None:
        if old is not None and new is None:
            address = (old["metadata"].get("namespace", ""), old["metadata"]["name"])
            self._parsed.pop(address, None)
            self._settled.pop(address, None)


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
    def __init__(self, models: Models[R], objects: Mapping[str, Manifest]) -> None:
        self._models = models
        self._objects = objects

    def __getitem__(self, name: str) -> R:
        model = self._models.parse(self._objects[name])
        if model is None:
            raise KeyError(name)
        return model

    def __iter__(self) -> Iterator[str]:
        return (name for name in list(self._objects) if self._models.parse(self._objects[name]) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
