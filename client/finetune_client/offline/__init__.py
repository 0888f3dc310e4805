# SPDX-License-Identifier: Apache-2.0
"""Judge manifests without a cluster, with the verdict of the API server."""
