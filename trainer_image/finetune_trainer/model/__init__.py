"""Weights of base models and adapters, their loss, and the device they are on."""
