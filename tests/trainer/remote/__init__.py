# SPDX-License-Identifier: Apache-2.0
"""Network access: sources, base models and stores, against real servers."""
