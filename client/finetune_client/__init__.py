# SPDX-License-Identifier: Apache-2.0
"""What a program needs that works with the operator's objects and endpoints from outside the cluster."""
