# SPDX-License-Identifier: Apache-2.0
"""The losses of a training report as an event file of TensorBoard.

The file is a sequence of TFRecords: the length of the message, its masked CRC-32C, the message, and its
masked CRC-32C, all little-endian. Messages are `tensorboard.Event` of tensorboard/compat/proto/event.proto.
Four of its fields are encoded here, because the package `tensorboard` is not in the images.
"""

import struct
from collections.abc import Iterator
from typing import Final

import google_crc32c

from finetune_trainer.report.document import Document
from finetune_trainer.report.training import SPLITS

EVENT_FILE: Final = "events.out.tfevents.losses"
"""Name of the file. TensorBoard reads files with `tfevents` in their names."""
FORMAT: Final = b"brain.Event:2"
MASK: Final = 0xA282EAD8


def event_file(report: Document, written: float) -> bytes:
    """The losses of a report made by `training_report`, as `train/loss` and `validation/loss` by step.

    `train/tokens_per_second` is the mean of the run, at its last step. `written`, in seconds since the
    epoch, is the time of all events, because a report has no times of steps.
    """
    points = [
        (point["step"], f"{split}/loss", point["loss"])
        for split, field in SPLITS.items()
        for point in report[field]
    ]
    if report["tokensPerSecond"] is not None:
        points.append((report["steps"], "train/tokens_per_second", report["tokensPerSecond"]))
    return b"".join(map(_record, _events(sorted(points), written)))


def _events(points: list[tuple[int, str, float]], written: float) -> Iterator[bytes]:
    """Encoded messages: wall_time (1), step (2), and file_version (3) or summary (5)."""
    time = b"\x09" + struct.pack("<d", written)
    yield time + _bytes(3, FORMAT)
    for step, tag, value in points:
        scalar = _bytes(1, tag.encode()) + b"\x15" + struct.pack("<f", value)
        yield time + b"\x10" + _varint(step) + _bytes(5, _bytes(1, scalar))


def _bytes(field: int, content: bytes) -> bytes:
    """A field of variable length."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def _record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + _masked_checksum(length) + message + _masked_checksum(message)


def _masked_checksum(content: bytes) -> bytes:
    checksum = google_crc32c.value(content)
    rotated = (checksum >> 15 | checksum << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + MASK) & 0xFFFFFFFF)
