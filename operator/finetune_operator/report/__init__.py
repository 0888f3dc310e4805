# SPDX-License-Identifier: Apache-2.0
"""The report endpoint: pods report their progress to it by HTTPS."""
