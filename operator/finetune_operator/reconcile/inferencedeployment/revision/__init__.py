# SPDX-License-Identifier: Apache-2.0
"""Determine the revision that an endpoint should serve, and prepare its weights."""
