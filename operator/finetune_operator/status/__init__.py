# SPDX-License-Identifier: Apache-2.0
"""Pure rules about statuses: conditions, reasons, progress and reserved fields."""
