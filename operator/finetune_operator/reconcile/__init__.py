# SPDX-License-Identifier: Apache-2.0
"""The pure core: `(resource, snapshot) -> Plan`, one package per kind.

Each kind has its logic in `reconciler.py` and its row in `kind.py`; `registry.py` lists the rows. Kinds do
not import each other. `kind_table.py` defines a row. Shared rules are in `records`, `stages`, `platform`,
`model_lines`, `verdicts` and `inputs`; `passes` has what a pass decides and how it ends.
"""
