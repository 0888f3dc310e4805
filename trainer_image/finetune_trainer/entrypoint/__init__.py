# SPDX-License-Identifier: Apache-2.0
"""Runs the stage that the pod's config names, and ends the process. Only this package imports every stage."""
