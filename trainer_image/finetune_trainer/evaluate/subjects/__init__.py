# SPDX-License-Identifier: Apache-2.0
"""The models that are measured: how each is prompted, how it answers, and where its weights are."""
