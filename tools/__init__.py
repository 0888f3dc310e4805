# SPDX-License-Identifier: Apache-2.0
"""What the product needs to be tried, built and measured."""
