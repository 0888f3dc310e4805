# SPDX-License-Identifier: Apache-2.0
"""Metrics of the user: Python functions, each in a process that has no network and cannot start programs.

`stage` starts the process and sends it answers. `child` is its program; it imports the standard library only.
`syscallfilter` restricts its system calls.
"""
