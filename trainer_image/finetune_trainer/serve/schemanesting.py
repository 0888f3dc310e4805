"""The limit of JSON Schemas and grammars of clients: their compilers are recursive and follow each reference.

A stack that overflows ends the process, and all requests in it.
"""

from typing import Final

from finetune_trainer.serve.errors import RequestError

MAX_NESTING: Final = 1000
"""Compilers that have a stack of 8 MiB were ended by 2,400 and more, those of grammars by 5,000 rules."""


def check_nesting(schema: object, field: str) -> None:
    """Refuse a schema, or a value that contains schemas, that has too many levels. Raises RequestError."""
    if nesting(schema) > MAX_NESTING:
        raise unusable("it has too many references, or is nested too deeply", field)


def check_grammar(grammar: str, field: str) -> None:
    """Refuse a grammar, in Lark's form or EBNF, that has too many rules or a schema. Raises RequestError."""
    if "%json" in grammar:
        raise RequestError.invalid(f"{field}: %json is not supported. Use structured_outputs.json.", field)
    # Each rule has a colon.
    if grammar.replace("::=", ":").count(":") > MAX_NESTING:
        raise RequestError.invalid(f"{field}: the grammar has more than {MAX_NESTING} rules.", field)


def nesting(schema: object) -> int:
    """The most levels through which a compiler can go: those of the JSON, once for each reference."""
    depth, references, waiting = 0, set[str](), [(schema, 1)]
    while waiting:
        value, level = waiting.pop()
        depth = max(depth, level)
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                references.add(reference)
            value = list(value.values())
        if isinstance(value, list):
            waiting += [(each, level + 1) for each in value]
    return depth * (len(references) + 1)


def unusable(why: str, field: str) -> RequestError:
    """The error of a request whose schema cannot be used."""
    return RequestError.invalid(
        f"The schema cannot be used: {why}. Simplify it, or remove what is not supported.", field
    )
