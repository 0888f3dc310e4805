# SPDX-License-Identifier: Apache-2.0
"""The state of a run in its folder, from which the next pod resumes, and the checkpoints it publishes."""
