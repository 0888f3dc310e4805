# SPDX-License-Identifier: Apache-2.0
"""Guards that end training that cannot succeed: memory is exhausted, a step hangs."""
