# SPDX-License-Identifier: Apache-2.0
"""Pure functions that build manifests, one module per family of objects."""
