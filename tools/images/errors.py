# SPDX-License-Identifier: Apache-2.0
"""Errors of image builds."""


class ImageError(Exception):
    """A build failed; the message says what failed and what to do next."""


class SourcesChangedError(ImageError):
    """The sources changed during the build; the image, which may not match its tag, was removed."""
