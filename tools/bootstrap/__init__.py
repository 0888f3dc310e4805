# SPDX-License-Identifier: Apache-2.0
"""Commands that run before the virtual environment exists, with the standard library only."""
