# SPDX-License-Identifier: Apache-2.0
"""Model lines: their Checkpoints, their champions, and the promotion rule."""
