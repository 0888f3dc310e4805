# SPDX-License-Identifier: Apache-2.0
"""What the operator costs where thousands of objects wait, serve or have piled up."""
