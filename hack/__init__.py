# SPDX-License-Identifier: Apache-2.0
"""Generate and check files of the repository."""
