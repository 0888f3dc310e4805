# SPDX-License-Identifier: Apache-2.0
"""Context and progress that all stages share."""
