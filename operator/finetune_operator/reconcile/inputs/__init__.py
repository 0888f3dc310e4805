# SPDX-License-Identifier: Apache-2.0
"""The input of passes: snapshots, the types of secondary resources, and the indexes of the caches."""
