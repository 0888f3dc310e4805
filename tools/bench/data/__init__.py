# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of preparing millions of rows, compared with a script that uses `datasets`."""
