"""Typed views of a store: each object is parsed when it is first read, once for each of its states."""

import logging
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, cast

from pydantic import ValidationError

from finetune_operator.api.meta import Resource
from finetune_operator.engine.store import ObjectStore
from finetune_operator.plan import Manifest
from finetune_trainer.lenient import lenient_validator

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)


class Models(Generic[R]):
    """The objects of one kind as models.

    Values that only a newer release knows are data: such an object is read, and `unknown` names them. One
    that cannot be read at all, which the CRDs of this version would have refused, is logged and left out.
    """

    def __init__(self, store: ObjectStore, model: type[R]) -> None:
        self._store = store
        self._model = model
        self._parsed: dict[tuple[str, str], tuple[Manifest, R | None, tuple[str, ...]]] = {}
        store.subscribe(self._forget)

    def get(self, namespace: str, name: str) -> R | None:
        obj = self._store.get(namespace, name)
        return None if obj is None else self.parse(obj)

    def parse(self, obj: Manifest) -> R | None:
        """The model of this state of an object, or None where it cannot be read."""
        address = (obj["metadata"].get("namespace", ""), obj["metadata"]["name"])
        known = self._parsed.get(address)
        if known is not None and known[0] is obj:
            return known[1]
        model: R | None
        unknown: tuple[str, ...] = ()
        try:
            model = self._model.model_validate(obj)
        except ValidationError as error:
            unknown = tuple(".".join(map(str, problem["loc"])) for problem in error.errors())
            model = self._leniently(obj, address)
        self._parsed[address] = (obj, model, unknown)
        return model

    def unknown(self, obj: Manifest) -> tuple[str, ...]:
        """Paths of the values in this state of an object that only a newer release knows."""
        self.parse(obj)
        metadata = obj["metadata"]
        return self._parsed[metadata.get("namespace", ""), metadata["name"]][2]

    def _leniently(self, obj: Manifest, address: tuple[str, str]) -> R | None:
        try:
            return cast("R", lenient_validator(self._model).validate_python(obj))
        except ValidationError as error:
            logger.error(  # noqa: TRY400 - the traceback says nothing that the message does not
                "%s %s/%s is left out, apply the CRDs of this release: %s",
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

    def named(self, namespace: str) -> Mapping[str, R]:
        """One namespace's objects by name; costs nothing until it is read."""
        return _Named(self, self._store.names(namespace))

    def _forget(self, old: Manifest | None, new: Manifest | None) -> None:
        if old is not None and new is None:
            self._parsed.pop((old["metadata"].get("namespace", ""), old["metadata"]["name"]), None)


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
