# SPDX-License-Identifier: Apache-2.0
"""The Transformers engine: an OpenAI-compatible server for CPUs, small models and development clusters."""
