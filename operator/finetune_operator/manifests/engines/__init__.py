# SPDX-License-Identifier: Apache-2.0
"""Serving engines: one config for all of them, and the container of each."""
