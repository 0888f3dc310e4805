# SPDX-License-Identifier: Apache-2.0
"""The pure core: `(resource, snapshot) -> Plan`, one package per kind.

Each kind has its logic in `reconciler.py`; `registry.py` lists them. Kinds do not import each other. Shared
rules are in `records`, `stages`, `platform`, `model_lines`, `verdicts` and `inputs`; `passes` has
what a pass decides and how it ends.
"""
