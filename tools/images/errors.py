"""Errors of image builds, with messages for the user."""


class ImageError(Exception):
    """Says what failed and what to do next."""


class SourcesChangedError(ImageError):
    """What was built may not be what its tag says, and was dropped."""
