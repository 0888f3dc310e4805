# SPDX-License-Identifier: Apache-2.0
"""One pass for one object: read the snapshot, compute the plan, execute it, record metrics."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from secrets import token_bytes
from typing import Final

from finetune_operator.api.labels import SELECTOR
from finetune_operator.api.meta import Model, Resource, keep_unknown
from finetune_operator.engine.cache_memory import MEBIBYTE
from finetune_operator.engine.errors import Conflict, Gone, NameConflict, Rejected, Undeclared, is_refusal
from finetune_operator.engine.executor import EventRecorder, Executor
from finetune_operator.engine.resources import NAMESPACE
from finetune_operator.manifests.labels import FINALIZER
from finetune_operator.metrics.changes import record_transition
from finetune_operator.metrics.process_metrics import OperatorMetrics
from finetune_operator.plan import Event, Key, Manifest, Plan
from finetune_operator.reconcile.features.peers import KEY_BYTES
from finetune_operator.reconcile.inputs.related_types import LookedUp
from finetune_operator.reconcile.inputs.snapshot import OperatorFacts, Snapshot, is_terminating
from finetune_operator.reconcile.passes import block
from finetune_operator.reconcile.registry import KIND_ROWS
from finetune_operator.report.progress_cache import ProgressCache
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.definitions import UPGRADE_ADVICE
from finetune_operator.runtime.lookups import Lookups
from finetune_operator.runtime.snapshots import SnapshotReader
from finetune_operator.status.reasons import EventReason, Reason

logger = logging.getLogger(__name__)

KNOWN_SECONDS: Final = 5.0
"""Seconds for which a service account counts as existing after it was created. A burst of runs then does not
request it repeatedly, and a namespace takes longer to be deleted and created again."""

OLD_DEFINITIONS: Final = (
    "the CustomResourceDefinitions in this cluster are older than this operator, so it cannot write the"
    f" status: {UPGRADE_ADVICE}"
)


MAX_NAMES_IN_MESSAGE: Final = 4


class Controller:
    """Reconciles objects of all kinds. A restart may lose its state."""

    def __init__(
        self,
        *,
        caches: Caches,
        reader: SnapshotReader,
        executor: Executor,
        events: EventRecorder,
        lookups: Lookups,
        board: ProgressCache,
        metrics: OperatorMetrics,
        facts: Callable[[], OperatorFacts],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caches = caches
        self._reader = reader
        self._executor = executor
        self._events = events
        self._lookups = lookups
        self._board = board
        self._metrics = metrics
        self._facts = facts
        self._clock = clock
        self._service_accounts: dict[str, dict[str, float]] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Execute one pass for the object.

        Passes with the same lock (`SnapshotReader.lock`) must not overlap; the queue ensures this.

        Returns:
            Seconds until the next pass, even without a change, or None.

        Raises:
            Gone: the object does not exist any more.
            Conflict, NameConflict, Rejected, Unavailable: see `Executor.carry_out`.
        """
        primary = self._caches.kinds[key.kind].get(key.namespace, key.name)
        if primary is None:
            self._lookups.note(key, {})
            raise Gone(key.name)
        resource = self._reader.resource(key)
        if resource is None:
            await self._release_unreadable(primary)
            return None
        now = datetime.now(UTC)
        if self._caches.bound.left_out(key.namespace) and resource.metadata.deletion_timestamp is None:
            await self._refuse_large_namespace(primary, resource, now)
        try:
            snapshot = await self._snapshot(resource, now)
            plan = self._decide(key, primary, resource, snapshot)
            self._lookups.written(plan.written)
            after = await self._executor.carry_out(primary, plan)
        except NameConflict as error:
            message = f"{error}; the operator continues when that object is deleted or renamed"
            await self._block(primary, resource, Reason.NAME_CONFLICT, message, now)
            raise
        except Rejected as error:
            if error.is_for_terminating_namespace:
                if resource.metadata.deletion_timestamp is not None:
                    # An object with the finalizer must stay queued: the next pass sees the terminating
                    # namespace.
                    raise Conflict(str(error)) from error
                raise Gone(f"namespace {key.namespace} is being deleted") from error
            if isinstance(error, Undeclared):
                # The status cannot be written, so an event reports it.
                logger.warning("%s (%s)", OLD_DEFINITIONS, error)
                await self._events.record(primary, Event("Warning", EventReason.BLOCKED, OLD_DEFINITIONS))
                raise
            message = f"the API server refuses a request for this object: {error.message}{_advice(error)}"
            await self._block(primary, resource, _reason(error), message, now)
            raise
        self._note_service_accounts(plan)
        record_transition(self._metrics, primary, after)
        return plan.requeue_after

    def _decide(self, key: Key, primary: Manifest, resource: Resource, snapshot: Snapshot) -> Plan:
        """Compute the plan. Status fields and values of a newer release are kept."""
        unknown = [path for path in self._reader.unknown(key) if path.startswith("spec.")]
        if unknown and resource.metadata.deletion_timestamp is None:
            result = block(resource, Reason.UNKNOWN_VALUES, _describe_unknown(unknown), snapshot.now)
            plan = Plan(status=result.manifest, events=result.events)
        else:
            plan = KIND_ROWS[key.kind].reconcile(resource, snapshot)
        if plan.status is None:
            return plan
        return replace(plan, status=self._with_unknown(primary, resource, plan.status))

    @staticmethod
    def _with_unknown(primary: Manifest, resource: Resource, status: Manifest) -> Manifest:
        if status == primary.get("status"):
            # Most passes change nothing, and then nothing can be lost.
            return status
        model = type(resource).model_fields["status"].annotation
        if not isinstance(model, type) or not issubclass(model, Model):
            return status
        return keep_unknown(model, primary.get("status", {}), status)

    async def _refuse_large_namespace(self, primary: Manifest, resource: Resource, now: datetime) -> None:
        """Report that this pass would not see all objects of its namespace.

        Raises:
            Rejected: always.
        """
        limit = self._caches.bound.limit_bytes // MEBIBYTE
        message = (
            f"the objects of this namespace need more than the {limit} MiB of memory that the operator has"
            f" for one namespace: delete runs that have ended, and objects with the label {SELECTOR} that"
            " are no longer needed. The operator continues within ten minutes; running pods are not affected"
        )
        await self._block(primary, resource, Reason.NAMESPACE_TOO_LARGE, message, now)
        raise Rejected(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "RequestEntityTooLarge", message)

    async def _release_unreadable(self, primary: Manifest) -> None:
        """Remove the finalizer of an unreadable object, so that its terminating namespace can be deleted.

        Raises:
            Rejected: the object has no finalizer, is not being deleted, or its namespace is not.
        """
        metadata = primary["metadata"]
        finalizers = metadata.get("finalizers", [])
        waits_for_operator = "deletionTimestamp" in metadata and FINALIZER in finalizers
        if not waits_for_operator or not is_terminating(await self._namespace(metadata["namespace"])):
            raise Rejected(HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid", "this release cannot read the object")
        others = [each for each in finalizers if each != FINALIZER]
        await self._executor.carry_out(primary, Plan(metadata={"finalizers": others}))

    async def _snapshot(self, resource: Resource, now: datetime) -> Snapshot:
        namespace = resource.namespace
        snapshot = self._reader.snapshot(
            resource,
            now=now,
            facts=self._facts(),
            entropy=token_bytes(KEY_BYTES),
            service_accounts=self._known_service_accounts(namespace),
            progress=self._board.progress(resource.uid),
        )
        metadata = resource.metadata
        looked_up: LookedUp = {}
        if metadata.deletion_timestamp is not None and FINALIZER in metadata.finalizers:
            looked_up = {NAMESPACE: {namespace: await self._namespace(namespace)}}
            snapshot = replace(snapshot, looked_up=looked_up)
            if snapshot.is_namespace_terminating:
                # Nothing can be created in it, and the operator's rights in it may be gone already.
                return snapshot
        needed = await self._lookups.get_all(namespace, KIND_ROWS[resource.kind].needs(resource, snapshot))
        self._lookups.note(Key(resource.kind, namespace, resource.name), needed)
        return replace(snapshot, looked_up={**looked_up, **needed})

    async def _namespace(self, name: str) -> Manifest | None:
        """The namespace, read or being read by another pass; None if it does not exist.

        Raises:
            Rejected: the operator has no right to read it.
        """
        found = await self._lookups.get(NAMESPACE, "", name, reuse=False)
        if found is not None and is_refusal(found):
            raise Rejected(found["code"], "Forbidden", found["message"])
        return found

    async def _block(
        self, primary: Manifest, resource: Resource, reason: Reason, message: str, now: datetime
    ) -> None:
        """Report on the object what blocks it. If the status cannot be written, log the message instead."""
        result = block(resource, reason, message, now)
        status = self._with_unknown(primary, resource, result.manifest)
        try:
            after = await self._executor.write_status(primary, status)
        except (Conflict, Rejected) as error:
            logger.warning("%s of %s: %s", message, primary["metadata"]["name"], error)
            return
        for event in result.events:
            await self._events.record(after, event)

    def _known_service_accounts(self, namespace: str) -> frozenset[str]:
        now = self._clock()
        seen = self._service_accounts.get(namespace, {})
        return frozenset(name for name, at in seen.items() if now - at < KNOWN_SECONDS)

    def _note_service_accounts(self, plan: Plan) -> None:
        for create in plan.create:
            if create.manifest["kind"] == "ServiceAccount":
                metadata = create.manifest["metadata"]
                self._service_accounts.setdefault(metadata["namespace"], {})[metadata["name"]] = self._clock()


def _describe_unknown(paths: list[str]) -> str:
    named = ", ".join(paths[:MAX_NAMES_IN_MESSAGE])
    return (
        f"this release of the operator does not know the value of {named}: upgrade the operator, or write a"
        " value that kubectl explain lists for this release. Until then the operator changes nothing, and"
        " running pods continue"
    )


def _advice(error: Rejected) -> str:
    lacks_a_right = error.code == HTTPStatus.FORBIDDEN and "cannot " in error.message
    return ": the chart's roles grant this right, and helm upgrade restores them" if lacks_a_right else ""


def _reason(error: Rejected) -> Reason:
    if "exceeded quota" in error.message:
        return Reason.QUOTA_EXCEEDED
    # A ValidatingAdmissionPolicy refuses with 422, as the API server does for an invalid object.
    if error.code == HTTPStatus.FORBIDDEN or "denied request" in error.message:
        return Reason.FORBIDDEN
    return Reason.INVALID_SPEC
