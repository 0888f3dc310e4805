# SPDX-License-Identifier: Apache-2.0
"""FineTuneSchedule: runs that start at times, when a Dataset has new rows, or on request."""

from datetime import datetime
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import (
    CELRule,
    Conditions,
    Model,
    Name,
    Resource,
    Status,
    name_rules,
    pattern_advice,
)
from finetune_operator.api.run_template import RUN_MAKER_NAME_LIMIT, RunTemplate

CRON: Final = r"^\S+ +\S+ +\S+ +\S+ +\S+$"
TIME_ZONE: Final = r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$"
MAX_ACTIVE: Final = 10
"""Unfinished runs of a schedule, with concurrencyPolicy: Allow."""
MAX_FAILURES: Final = 3
"""Failed runs in a row after which a schedule starts no other one."""
TriggerName = Literal["Cron", "NewVersion", "Request"]


class CronTrigger(Model):
    """Times at which a run starts."""

    schedule: Annotated[
        str,
        Field(
            max_length=100,
            pattern=CRON,
            json_schema_extra=pattern_advice(
                CRON,
                "a schedule has five fields: minute, hour, day of the month, month and day of the week, for"
                " example 0 3 * * 1",
            ),
            description="Times in cron syntax: minute, hour, day of the month, month, day of the week. For"
            " example 0 3 * * 1, each Monday at 3:00.",
        ),
    ]
    time_zone: Annotated[
        str,
        Field(
            max_length=64,
            pattern=TIME_ZONE,
            json_schema_extra=pattern_advice(
                TIME_ZONE, "a time zone is a name of the IANA database, such as Europe/Berlin or UTC"
            ),
            description="Time zone of the schedule, a name of the IANA database such as Europe/Berlin. A time"
            " that the change to summer time skips is an hour later on that day; one that occurs twice counts"
            " once, unless the schedule has ranges or lists of hours.",
        ),
    ] = "UTC"


class NewVersionTrigger(Model):
    """New rows of the Dataset in template.spec.dataset.ref."""

    min_changed_rows: Annotated[
        int,
        Field(
            ge=1,
            description="Number of rows that were added, removed or changed since the version of the last run"
            " before another one starts. A version whose difference is not known counts as enough.",
        ),
    ] = 1


class Triggers(Model):
    """What starts a run. The annotation finetune.dev/run-requested starts one too."""

    cron: Annotated[CronTrigger | None, Field(description="Times. Default: none.")] = None
    new_version: Annotated[
        NewVersionTrigger | None, Field(description="New versions of the Dataset. Default: no trigger.")
    ] = None


class FineTuneScheduleSpec(Model):
    """When runs start, and their template. All fields are mutable; runs that exist do not change."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "!has(self.triggers.newVersion) || has(self.template.spec.dataset.ref)",
            "triggers.newVersion needs a Dataset that has versions: write a Dataset, and name it in"
            " template.spec.dataset.ref",
            "triggers.newVersion",
        ),
        CELRule(
            "!has(self.triggers.newVersion) || !has(self.template.spec.dataset.ref)"
            " || !has(self.template.spec.dataset.ref.version)",
            "triggers.newVersion trains on each new version, and template.spec.dataset.ref.version names one:"
            " remove one of them",
            "template.spec.dataset.ref.version",
        ),
    )

    triggers: Annotated[
        Triggers,
        Field(
            description="What starts a run: any of them, or a new value of the annotation"
            " finetune.dev/run-requested."
        ),
    ] = Triggers()
    concurrency_policy: Annotated[
        Literal["Forbid", "Replace", "Allow"],
        Field(
            description="What happens to a trigger while a run of the schedule is unfinished. Forbid: it"
            " waits, and triggers that wait start one run together. Replace: the run is cancelled, and"
            " another one starts. Allow: another run starts, up to 10 at the same time."
        ),
    ] = "Forbid"
    starting_deadline_seconds: Annotated[
        int | None,
        Field(
            ge=60,
            description="Seconds after a time of triggers.cron in which its run may start. A run that could"
            " not start before is left out. Default: no limit. Of several missed times, only the last one"
            " starts a run.",
        ),
    ] = None
    min_interval_seconds: Annotated[
        int,
        Field(
            ge=0,
            le=31536000,
            description="Seconds between the starts of two runs. A trigger that comes earlier waits, except"
            " for a request.",
        ),
    ] = 3600
    suspend: Annotated[
        bool,
        Field(
            description="Whether no further run starts. Runs that exist continue. Triggers that come in the"
            " meantime start one run afterwards."
        ),
    ] = False
    template: Annotated[
        RunTemplate,
        Field(
            description="Template of the runs. With baseModel.champion, each run continues from the champion"
            " of a model line."
        ),
    ]


class LastTrigger(Model):
    """The last trigger of its kind that has started a run, alone or with others."""

    trigger: Annotated[str, Field(max_length=16, description="Cron, NewVersion or Request.")]
    key: Annotated[str, Field(max_length=320, description="Key of the trigger.")]
    at: Annotated[datetime, Field(description="Time at which the run started.")]
    run: Annotated[Name, Field(description="FineTuneJob that it started.")]


class ActiveRun(Model):
    """An unfinished run of the schedule."""

    name: Annotated[Name, Field(description="FineTuneJob.")]
    key: Annotated[str, Field(max_length=320, description="Key of the trigger, as in its annotation.")]
    version: Annotated[
        Name | None, Field(description="DatasetVersion that it trains on, for a new version.")
    ] = None
    created: Annotated[
        bool, Field(description="Whether the operator has created it. It is not created again then.")
    ] = False
    missing_since: Annotated[
        datetime | None, Field(description="Time since which the created run has not been found.")
    ] = None


class SeenVersion(Model):
    """What is known about the versions of the Dataset."""

    name: Annotated[Name, Field(description="Latest DatasetVersion that the schedule has seen.")]
    changed_rows: Annotated[
        int | None,
        Field(description="Rows that differ from the version of the last run. Absent: unknown."),
    ] = None


class ScheduleDisplay(Model):
    """Text for kubectl get. Programs must not read it."""

    triggers: Annotated[str, Field(max_length=240, description="Triggers.")] = ""
    last: Annotated[str, Field(max_length=320, description="Last run, and what started it.")] = ""
    next: Annotated[str, Field(max_length=32, description="Next time.")] = ""
    active: Annotated[str, Field(max_length=640, description="Unfinished runs.")] = ""


class FineTuneScheduleStatus(Status):
    """Observed state of a schedule."""

    last_triggers: Annotated[
        tuple[LastTrigger, ...],
        Field(max_length=3, description="The last trigger of each kind. It starts no second run."),
    ] = ()
    next_at: Annotated[
        datetime | None, Field(description="Next time of triggers.cron. Absent without cron, or suspended.")
    ] = None
    cron: Annotated[
        str | None, Field(max_length=200, description="Schedule and time zone that were observed last.")
    ] = None
    cron_since: Annotated[
        datetime | None, Field(description="Time from which times of this schedule count.")
    ] = None
    active: Annotated[
        tuple[ActiveRun, ...], Field(max_length=MAX_ACTIVE, description="Unfinished runs.")
    ] = ()
    seen_version: SeenVersion | None = None
    last_succeeded: Annotated[
        Name | None, Field(description="Last run that ended with success, promoted or not.")
    ] = None
    last_started_at: Annotated[datetime | None, Field(description="Start of the last run.")] = None
    failures: Annotated[
        int,
        Field(
            description="Failed runs since the last one that did not fail. After 3 the schedule starts no"
            " run until its spec is changed."
        ),
    ] = 0
    display: ScheduleDisplay | None = None
    conditions: Conditions = ()


class FineTuneSchedule(Resource):
    """Start runs at times, for new rows, or on request."""

    rules: ClassVar[tuple[CELRule, ...]] = name_rules("FineTuneSchedule", RUN_MAKER_NAME_LIMIT)

    kind: str = "FineTuneSchedule"
    spec: FineTuneScheduleSpec
    status: FineTuneScheduleStatus = FineTuneScheduleStatus()
