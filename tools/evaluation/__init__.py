# SPDX-License-Identifier: Apache-2.0
"""Tables about the intervals of an evaluation, from the code that computes them."""
