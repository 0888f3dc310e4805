# SPDX-License-Identifier: Apache-2.0
"""Judges: models behind an endpoint of the user that compare two answers to the same row.

`prompt` is what a judge reads and replies. `questions` makes the calls of all rows, `verdictlog` keeps the
replies, `judging` does the calls, and `winrates` makes estimates of the verdicts.
"""
