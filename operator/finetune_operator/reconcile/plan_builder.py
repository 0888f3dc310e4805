# SPDX-License-Identifier: Apache-2.0
"""The decisions of one pass so far."""

from dataclasses import dataclass, field
from typing import Literal

from finetune_operator.manifests.pod_security import build_service_account
from finetune_operator.plan import Create, Delete, Event, Manifest, Plan
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.status.conditions import shorten
from finetune_operator.status.reasons import EventReason


@dataclass(slots=True)
class PlanBuilder:
    """Creates, deletes and events of one pass; `plan` adds the status."""

    snapshot: Snapshot
    create: list[Create] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def start_job(self, job: Manifest) -> None:
        """Create a stage's Job, and before it the service account of its pods."""
        account = job["spec"]["template"]["spec"]["serviceAccountName"]
        if account not in self.snapshot.service_accounts:
            manifest = build_service_account(
                job["metadata"]["namespace"], account, self.snapshot.facts.accounts
            )
            self.create.append(Create(manifest, same="Any"))
        self.create.append(Create(job))

    def remove(
        self, manifest: Manifest, propagation: Literal["Foreground", "Background"] = "Foreground"
    ) -> None:
        """Delete an object unless it is already being deleted."""
        if "deletionTimestamp" not in manifest["metadata"]:
            self.delete.append(Delete(manifest, propagation))

    def event(
        self, reason: EventReason, message: str, type_: Literal["Normal", "Warning"] = "Normal"
    ) -> None:
        """Add an event about the reconciled object. Events take as much text as conditions."""
        self.events.append(Event(type_, reason, shorten(message)))

    def plan(
        self,
        status: Manifest | None,
        requeue_after: float | None = None,
        metadata: Manifest | None = None,
    ) -> Plan:
        return Plan(
            create=tuple(self.create),
            delete=tuple(self.delete),
            status=status,
            events=tuple(self.events),
            metadata=metadata,
            requeue_after=requeue_after,
        )
