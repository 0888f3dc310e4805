# SPDX-License-Identifier: Apache-2.0
"""The road of a stage, the same for runs and Datasets.

`advance` follows the stage's Jobs and answers with the result, with how the pass ends, or with the Job that
is needed next. The caller builds that Job, and `start` creates it. `STAGES` has what differs between stages.
"""
