# SPDX-License-Identifier: Apache-2.0
"""Network access: one place for credentials, addresses, time limits and retries."""
