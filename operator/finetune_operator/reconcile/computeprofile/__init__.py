# SPDX-License-Identifier: Apache-2.0
"""Reconcile ComputeProfiles: report whether objects can use the profile."""
