# SPDX-License-Identifier: Apache-2.0
"""Callbacks between optimizer steps, one concern per module, over one run state.

`events` passes each event to the callbacks in this order: Heartbeat, Reporting, Divergence, Keeping,
Validating, Saving. Each may end training by raising Preempted, StageFailure or StoppedEarly; the later
callbacks are then not called.
"""
