"""The contract between operator and trainer; the one package that both sides import.

In: one JSON config in the environment variable `FINETUNE_CONFIG`; fields at their default are left out,
but for `contract` and `stage`.
Out: `result.json` in the run's folder of the store, written last, and the same in the termination message.
On the way: reports POSTed to the operator; the chain completes without them.

Versions: a release speaks `CONTRACT_VERSION` and the version before it. A field that an older version does
not know is marked in its Field, `json_schema_extra={"since": 2}`, and is left out of its messages. In
a dataclass the mark is in the metadata of the field.
Add `"essential": True` if the reader must not run without the field once it is set: the operator then blocks
with a condition instead of leaving it out. Configs are read strictly, results and reports leniently.

Nothing here imports torch or another part of the trainer, and nothing ever may. `vocabulary` and the tables
do not import pydantic either. This file imports nothing: it runs before every module of the package.
"""
