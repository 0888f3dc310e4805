# SPDX-License-Identifier: Apache-2.0
"""Resources of the platform team: ComputeProfiles and stores, and whether an object can use them."""
