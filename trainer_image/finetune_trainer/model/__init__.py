"""Base models and adapters: loading, loss and device."""
