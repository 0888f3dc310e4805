"""The process: what it watches, when it works, what a pass does, and how it ends."""
