# SPDX-License-Identifier: Apache-2.0
"""Fixed limits of time and size, so that a stage fails with a message of its own and not by its deadline."""

from typing import Final

CONNECT_SECONDS: Final = 30.0
STALL_SECONDS: Final = 60.0
"""Max time without data within a response."""
CHUNK_BYTES: Final = 16 << 20
"""Size of one request. A broken connection loses at most this."""
REQUESTS_AHEAD: Final = 4
"""Concurrent requests per file. A small pod can hold this many chunks in memory."""
MAX_ATTEMPTS: Final = 7
"""Max attempts per request."""
MAX_PAUSE_SECONDS: Final = 30.0
"""Max pause between two attempts. The first pause is 1 s, and each is twice the previous one."""
MAX_SOURCE_BYTES: Final = 16 << 30
"""Max size of a source of rows. The pod's own volume holds it while it is read."""
MAX_MODEL_BYTES: Final = 4 << 40
"""Max size of a base model."""
MAX_FILES: Final = 10_000
"""Max files in one folder. Each costs several requests."""
MAX_DOWNLOAD_SECONDS: Final = 24 * 3600.0
"""Max duration of the download of a source or base model by one pod."""
