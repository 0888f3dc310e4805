# SPDX-License-Identifier: Apache-2.0
"""Stage `preflight`: check the base model against the data before a device is requested."""
