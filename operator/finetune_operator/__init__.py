# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes operator that fine-tunes language models and rolls them into service."""

__version__ = "0.1.0"
