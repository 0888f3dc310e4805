"""How long and how much: fixed, so that a stage ends in its own words and not by its Job's deadline."""

from typing import Final

CONNECT_SECONDS: Final = 30.0
STALL_SECONDS: Final = 60.0
"""Longest silence in the middle of an answer."""
CHUNK_BYTES: Final = 16 << 20
"""What one request asks for; a broken connection loses no more than that."""
REQUESTS_AHEAD: Final = 4
"""How many of them are under way for one file; a small pod holds so many chunks in memory."""
MAX_ATTEMPTS: Final = 7
"""How often one request is made before its failure counts."""
MAX_PAUSE_SECONDS: Final = 30.0
"""Between two attempts; the first pause is a second, and each is twice the one before."""
MAX_SOURCE_BYTES: Final = 16 << 30
"""Largest source of rows; it is kept on the pod's own volume while it is read."""
MAX_MODEL_BYTES: Final = 4 << 40
"""Largest base model."""
MAX_FILES: Final = 10_000
"""In one folder; each of them costs several requests."""
MAX_DOWNLOAD_SECONDS: Final = 24 * 3600.0
"""Longest download of a source or of a base model by one pod."""
