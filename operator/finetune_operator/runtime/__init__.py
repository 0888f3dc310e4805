# SPDX-License-Identifier: Apache-2.0
"""The process: what it watches, when it works, what a pass does, and how it ends."""
