# SPDX-License-Identifier: Apache-2.0
"""The contract between operator and trainer: the only package that both import.

Input: one JSON config in the environment variable `FINETUNE_CONFIG`. Fields at their default are omitted,
except `contract` and `stage`.
Output: `result.json` in the run's folder of the store, written last, and the same in the termination message.
Meanwhile: progress reports POSTed to the operator. The chain completes without them.

Versions: a release reads and writes the versions in `CONTRACT_VERSIONS`. To raise the contract, set
`CONTRACT_VERSION` to the next number N, keep the version before it in `CONTRACT_VERSIONS`, and mark a field
that the older version does not know in its Field with `json_schema_extra={"since": N}`: messages of the older
version omit it. In a dataclass, put the mark into the field's metadata.
Add `"essential": True` if the reader must not run without the field once it is set: the operator then blocks
with a condition instead of omitting it. Configs are read strictly, results and reports leniently.

The package must not import torch or another part of the trainer. `vocabulary` and `dataset` do not import
pydantic either. This file imports nothing, because it runs before every module of the package.
"""
