# SPDX-License-Identifier: Apache-2.0
"""Checks of trained weights that no metric shows. What they find can veto the promotion."""
