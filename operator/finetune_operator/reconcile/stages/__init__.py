# SPDX-License-Identifier: Apache-2.0
"""Stages and their Jobs, the same for all kinds.

`runner.run_stage` takes a stage of a `StageOwner` to its result, or says how the pass ends. `repeated_jobs`
does so for Jobs that are repeated until they succeed. `STAGES` has what differs between stages.
"""
