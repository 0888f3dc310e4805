# SPDX-License-Identifier: Apache-2.0
"""Configs: one for each process, with what it has to do."""
