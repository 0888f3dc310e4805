# SPDX-License-Identifier: Apache-2.0
"""Verdicts of evaluations, the same for runs and other kinds that evaluate: pure functions of results."""
