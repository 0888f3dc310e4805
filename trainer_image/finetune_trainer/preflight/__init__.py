"""The base model and the data against each other, before a device is asked for."""
