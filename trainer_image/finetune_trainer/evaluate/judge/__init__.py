# SPDX-License-Identifier: Apache-2.0
"""Judges: models behind an endpoint of the user that compare two answers to the same row.

`questions` makes the calls of all rows, with what a judge reads and replies. `judging` does the calls, and
`verdicts` keeps the replies and makes estimates of them.
"""
