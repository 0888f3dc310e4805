# SPDX-License-Identifier: Apache-2.0
"""Files between this machine and a store: which ones, how they are carried, and their checks."""
