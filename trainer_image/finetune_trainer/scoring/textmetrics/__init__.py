# SPDX-License-Identifier: Apache-2.0
"""Metrics whose value of a row follows from the text of the answer and the accepted texts."""
