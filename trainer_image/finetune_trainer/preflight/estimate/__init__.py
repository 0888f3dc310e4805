# SPDX-License-Identifier: Apache-2.0
"""Predicts what training will take, without weights and without a device, and chooses what fits.

One step of the real Trainer runs on fake tensors, which have shapes and no content (`fake_step`). The live
bytes and the floating-point operations of every operation are counted, and two shallow models give the
figures of a deep one. Formulas add what needs a GPU or several processes (`memory`). From these follow the
batches, and what would fit in place of a run that is refused (`memory_plan`). `prediction` is the entry.
"""
