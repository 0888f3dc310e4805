# SPDX-License-Identifier: Apache-2.0
"""Predicts what training will take, without weights and without a device, and chooses what fits.

One step of the real Trainer runs on fake tensors, which have shapes and no content (`fakestep`). The live
bytes and the floating-point operations of every operation are counted (`livebytes`). Two shallow models give
the figures of a deep one (`depth`). Formulas add what needs a GPU or several processes (`memory`). From these
follow the batches (`plan`), the duration (`duration`), and what would fit in place of a run that is refused
(`refusal`). `prediction` is the entry.
"""
