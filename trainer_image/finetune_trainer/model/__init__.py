# SPDX-License-Identifier: Apache-2.0
"""Base models and adapters: loading, loss and device."""
