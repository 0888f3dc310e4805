"""Checks of trained weights that no metric shows. What they find can veto the promotion."""
