# SPDX-License-Identifier: Apache-2.0
"""Speed of serving: vLLM with and without what an endpoint adds, and the built-in engine."""
