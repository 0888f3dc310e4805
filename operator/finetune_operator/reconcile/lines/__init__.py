"""Model lines: their Checkpoints, their champions, and the promotion rule."""
