# SPDX-License-Identifier: Apache-2.0
"""`finetune-check`: check rows on a laptop as the stage `prepare` does in the cluster."""
