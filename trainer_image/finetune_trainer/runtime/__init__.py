"""What every process of the trainer needs: signals, failures, logs, reports. This file imports nothing."""
