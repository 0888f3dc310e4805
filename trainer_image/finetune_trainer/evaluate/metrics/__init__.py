# SPDX-License-Identifier: Apache-2.0
"""The metrics, one module each: the value of a row, and the score of all rows if it is not a mean."""
