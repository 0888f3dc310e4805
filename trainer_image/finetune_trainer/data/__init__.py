# SPDX-License-Identifier: Apache-2.0
"""Turns the files of a team into validated, cleaned and split rows, and reports what was found in them.

The same code prepares a Dataset in the cluster and checks a file on a laptop. It does not depend on a model,
a store or the operator. Its entry point is `pipeline.prepare`:

    files -> containers (bytes to records) -> formats (records to rows) -> checks, cleaning, split -> result
"""
