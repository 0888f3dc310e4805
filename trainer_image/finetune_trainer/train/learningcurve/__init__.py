# SPDX-License-Identifier: Apache-2.0
"""Trainings on nested subsets of the rows after the run itself, to see whether more rows would help.

The main run is complete, and its checkpoints are published, before the first subset begins. `curve` is the
entry; `record` is what a restarted pod continues from.
"""
