# SPDX-License-Identifier: Apache-2.0
"""Code for every trainer process. Imports nothing, because `signals` is the first module of a process."""
