# SPDX-License-Identifier: Apache-2.0
"""Training: the loop, its resume states, and the checkpoints it publishes."""
