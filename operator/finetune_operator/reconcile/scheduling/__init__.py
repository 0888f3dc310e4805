# SPDX-License-Identifier: Apache-2.0
"""Scheduling of passes: the objects that a change concerns, and locks for passes that must not overlap."""
