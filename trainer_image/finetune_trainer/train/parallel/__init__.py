# SPDX-License-Identifier: Apache-2.0
"""Training one model in several processes: sharding of weights and batches."""
