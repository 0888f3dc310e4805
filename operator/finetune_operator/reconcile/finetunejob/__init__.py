# SPDX-License-Identifier: Apache-2.0
"""Reconcile FineTuneJobs: one chain of stages from data to a verdict."""
