# SPDX-License-Identifier: Apache-2.0
"""Training speed and memory compared with TRL's SFTTrainer, and the cost of saving the state."""
