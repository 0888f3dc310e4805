# SPDX-License-Identifier: Apache-2.0
"""FineTuneJob: one run, from rows to a promoted Checkpoint. Its spec is immutable."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.compute import Compute
from finetune_operator.api.finetune_job_status import FineTuneJobStatus
from finetune_operator.api.meta import CELRule, Resource, immutable_part, immutable_rules, name_rules
from finetune_operator.api.run_template import RUN_RULES, ChildrenTTLSeconds, RunTemplateFields

ADVICE: Final = "a run is a record: create a new FineTuneJob (…-v2)"


class _FineTuneJobFields(RunTemplateFields):
    suspend: Annotated[
        bool,
        Field(
            description="Whether the run is suspended. Its pods stop and free their devices; when the field"
            " is false again, training resumes from the last saved state. Mutable."
        ),
    ] = False
    cancel: Annotated[
        bool,
        Field(
            description="Whether the run is cancelled. Its pods save their state, end and free their devices."
            " Its Checkpoints stay. A cancelled run never starts again, even if the field is removed. No"
            " effect on a finished run. Mutable."
        ),
    ] = False
    children_ttl_seconds: ChildrenTTLSeconds = 86400


class FineTuneJobSpec(_FineTuneJobFields):
    """Desired state of a run. Immutable except `suspend`, `cancel`, `childrenTTLSeconds` and
    `compute.maxRunSeconds`."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *immutable_rules(
            _FineTuneJobFields,
            mutable=frozenset({"suspend", "cancel", "childrenTTLSeconds", "compute"}),
            advice=ADVICE,
        ),
        immutable_part("compute", Compute, mutable=frozenset({"maxRunSeconds"}), advice=ADVICE),
        *RUN_RULES,
    )


class FineTuneJob(Resource):
    """A fine-tuning run: prepare rows, train a model, evaluate it, and promote it if it passes its gates."""

    rules: ClassVar[tuple[CELRule, ...]] = name_rules("FineTuneJob")
    done_phase: ClassVar[str | None] = "Succeeded"
    keeps_verdict: ClassVar[bool] = True

    kind: str = "FineTuneJob"
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()
