# SPDX-License-Identifier: Apache-2.0
"""What starts a run of a schedule: a time, new rows or a request, each with a key that starts one run."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.finetune_schedule import (
    CronTrigger,
    FineTuneSchedule,
    SeenVersion,
    TriggerName,
)
from finetune_operator.manifests.labels import RUN_REQUESTED, short_hash
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.status.conditions import is_prepared

CRON_KEY: Final = "cron/"
MAX_REQUEST_CHARACTERS: Final = 64
"""Max characters of a request in a key; a longer one is replaced by its hash."""


@dataclass(frozen=True, slots=True)
class DueTrigger:
    """A trigger that has started no run yet.

    Attributes:
        trigger: its kind.
        key: why; the name of the run ends with a hash of it.
        text: why, for users.
        version: DatasetVersion that the run trains on, for a new version.
    """

    trigger: TriggerName
    key: str
    text: str
    version: str | None = None


def check_cron(cron: CronTrigger) -> str | None:
    """What is wrong with the times of a schedule; None if there is a next one."""
    try:
        ZoneInfo(cron.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return (
            f"spec.triggers.cron.timeZone {cron.time_zone} is unknown: write a name of the IANA database,"
            " such as Europe/Berlin or UTC"
        )
    try:
        is_empty = next_time(cron, datetime(2024, 1, 1, tzinfo=UTC)) is None
    except CronSimError as error:
        return (
            f"spec.triggers.cron.schedule {cron.schedule}: {str(error).lower()}; write minute, hour, day of"
            " the month, month and day of the week, for example 0 3 * * 1"
        )
    if is_empty:
        return f"spec.triggers.cron.schedule {cron.schedule} has no time: correct the day or the month"
    return None


def next_time(cron: CronTrigger, after: datetime) -> datetime | None:
    """The first time after `after`, in UTC; None if there is none. Raises CronSimError."""
    found = next(CronSim(cron.schedule, after.astimezone(ZoneInfo(cron.time_zone))), None)
    return None if found is None else found.astimezone(UTC)


def last_time(cron: CronTrigger, until: datetime) -> datetime | None:
    """The last time not after `until`, in UTC; None if there is none. Raises CronSimError."""
    # The search begins with the minute before.
    start = until.replace(second=0, microsecond=0) + timedelta(minutes=1)
    found = next(CronSim(cron.schedule, start.astimezone(ZoneInfo(cron.time_zone)), reverse=True), None)
    return None if found is None else found.astimezone(UTC)


def cron_key(time: datetime) -> str:
    """The key of a time: its minute in UTC."""
    return f"{CRON_KEY}{time.astimezone(UTC):%Y-%m-%dT%H:%MZ}"


def time_of(key: str) -> datetime:
    """The time of a `cron_key`. Raises ValueError."""
    return datetime.strptime(key.removeprefix(CRON_KEY), "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC)


def missed_time(schedule: FineTuneSchedule, since: datetime, now: datetime) -> datetime | None:
    """The last time of the schedule after `since` that has started no run; None if there is none."""
    cron = schedule.spec.triggers.cron
    if cron is None:
        return None
    used = [time_of(each.key) for each in schedule.status.last_triggers if each.trigger == "Cron"]
    time = last_time(cron, now)
    return time if time is not None and time > max([since, *used]) else None


def is_late(schedule: FineTuneSchedule, time: datetime, now: datetime) -> bool:
    """Whether the run of a time may not start any more."""
    deadline = schedule.spec.starting_deadline_seconds
    return deadline is not None and (now - time).total_seconds() > deadline


def latest_version(schedule: FineTuneSchedule, snapshot: Snapshot) -> tuple[Dataset, DatasetVersion] | None:
    """The Dataset of `newVersion` with its latest version; None without either, or until it is prepared."""
    ref = schedule.spec.template.spec.dataset.ref
    if schedule.spec.triggers.new_version is None or ref is None:
        return None
    dataset = snapshot.datasets.get(ref.name)
    if dataset is None or not is_prepared(dataset):
        return None
    version = snapshot.datasetversions.get(dataset.status.latest_version or "")
    if version is None or version.metadata.deletion_timestamp is not None:
        return None
    return dataset, version


def see_version(
    seen: SeenVersion | None, dataset: Dataset, version: DatasetVersion, *, is_trained: bool
) -> SeenVersion:
    """What is known after a look at the latest version.

    `is_trained`: whether the model line has a Checkpoint that was trained on it, for a first look.
    """
    if seen is None:
        return SeenVersion(name=version.name, changed_rows=0 if is_trained else None)
    if seen.name == version.name:
        return seen
    difference, before = dataset.status.difference, seen.changed_rows
    if difference is None or difference.previous != seen.name or before is None:
        return SeenVersion(name=version.name)
    changed = before + difference.added + difference.removed + difference.changed
    return SeenVersion(name=version.name, changed_rows=changed)


def due_triggers(
    schedule: FineTuneSchedule, snapshot: Snapshot, since: datetime, seen: SeenVersion | None
) -> Iterator[DueTrigger]:
    """Triggers that have started no run, requests first."""
    last = {each.trigger: each.key for each in schedule.status.last_triggers}
    text = schedule.metadata.annotations.get(RUN_REQUESTED, "").strip()
    if len(text) > MAX_REQUEST_CHARACTERS:
        text = short_hash(text, length=MAX_REQUEST_CHARACTERS)
    if text and last.get("Request") != f"request/{text}":
        yield DueTrigger("Request", f"request/{text}", f"request: {text}")
    time = missed_time(schedule, since, snapshot.now)
    if time is not None and not is_late(schedule, time, snapshot.now):
        yield DueTrigger("Cron", cron_key(time), f"the time {time:%Y-%m-%d %H:%M} UTC")
    new, found = schedule.spec.triggers.new_version, latest_version(schedule, snapshot)
    if new is None or found is None or seen is None:
        return
    _, version = found
    key = f"version/{version.spec.digest}"
    rows = seen.changed_rows
    if (rows is None or rows >= new.min_changed_rows) and last.get("NewVersion") != key:
        how_many = "an unknown number of" if rows is None else f"{rows}"
        text = f"{how_many} changed rows in DatasetVersion {version.name}"
        yield DueTrigger("NewVersion", key, text, version.name)
