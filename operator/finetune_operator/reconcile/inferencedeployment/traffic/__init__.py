# SPDX-License-Identifier: Apache-2.0
"""Route the requests of an endpoint to its revisions."""
