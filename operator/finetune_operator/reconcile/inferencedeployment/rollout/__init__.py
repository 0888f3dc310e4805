# SPDX-License-Identifier: Apache-2.0
"""Roll out a revision of an endpoint by its strategy."""
