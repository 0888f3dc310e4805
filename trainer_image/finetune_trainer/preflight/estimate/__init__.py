"""Predicts what training will take, without weights and without a device.

One step of the real Trainer runs on fake tensors, which have shapes and no content (`fakestep`). The live
bytes and the floating-point operations of every operation are counted (`livebytes`). Two shallow models give
the figures of a deep one (`depth`).
"""
