# SPDX-License-Identifier: Apache-2.0
"""General ability: tasks of lm-evaluation-harness, done by the models of an evaluation."""
