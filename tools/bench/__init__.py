# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of the operator, of data preparation and of training."""
