# SPDX-License-Identifier: Apache-2.0
"""Metrics of the user: Python functions, each in a process that has no network and cannot start programs.

`stage` starts the process and talks to it. `child` is its program; it imports the standard library only.
`syscallfilter` is what confines it.
"""
