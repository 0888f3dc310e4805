# SPDX-License-Identifier: Apache-2.0
"""The guided demo: one run from rows to an endpoint, then a second run that the endpoint rolls out."""
