# SPDX-License-Identifier: Apache-2.0
"""Reconcile FineTuneSweeps: trials with different hyperparameters, and one more run with the best."""
