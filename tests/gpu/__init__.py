# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: plain Python in steps of at most eight minutes, run by `make gpu-smoke`.

pytest collects nothing here. `python -m tests.gpu --rehearse` runs the same steps with tiny models on a CPU.
"""
