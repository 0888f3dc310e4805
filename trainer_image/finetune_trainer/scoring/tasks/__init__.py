# SPDX-License-Identifier: Apache-2.0
"""Tasks of lm-evaluation-harness: what their files may have, and the library that renders and rates them."""
