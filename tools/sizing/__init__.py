# SPDX-License-Identifier: Apache-2.0
"""How much memory training takes, from 270M to 70B, by the code with which preflight predicts."""
