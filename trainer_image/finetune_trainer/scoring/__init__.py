# SPDX-License-Identifier: Apache-2.0
"""Reads the text of answers as labels, JSON or matches of a pattern, without a model.

`metric_scope` finds what metrics need in the options and rows: for preflight, before training takes time, and
for evaluate, which measures with it.
"""
