# SPDX-License-Identifier: Apache-2.0
"""Judges: models behind an endpoint of the user that compare two answers."""

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.custommetric import own_name
from finetune_operator.api.meta import HTTP_URL, CELRule, Model, SecretReference, base_url_advice
from finetune_trainer.contract.judge import MAX_JUDGES, JudgeFields
from finetune_trainer.contract.metrics import JUDGE


class Judge(JudgeFields, Model):
    """A model behind an OpenAI-compatible API that compares the answers of the tuned model with others. Its
    metric is `judge/` and the name."""

    name: Annotated[
        str, own_name(f"Name of the judge. Results and gates call its metric {JUDGE}/NAME.", "tone")
    ]
    endpoint: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=HTTP_URL,
            description="Base URL of an OpenAI-compatible API, for example https://api.openai.com/v1. Calls"
            " go to /chat/completions under it.",
            json_schema_extra=base_url_advice(
                "write the base URL of the API without user, query and fragment, for example"
                " https://api.openai.com/v1",
            ),
        ),
    ]
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(description="Secret with the token for the endpoint. Default: calls without credentials."),
    ] = None


JUDGE_RULES: Final = (
    CELRule(
        "!has(self.judges) || self.judges.all(one, self.judges.exists_one(other, other.name == one.name))",
        "judges names a judge twice: name each judge once",
        "judges",
    ),
    CELRule(
        f"self.gates.all(gate, !gate.metric.startsWith('{JUDGE}/') || has(self.judges) &&"
        f" self.judges.exists(judge, gate.metric == '{JUDGE}/' + judge.name))",
        f"a gate on {JUDGE}/NAME needs NAME in evaluation.judges: add it, or correct the name",
        "gates",
    ),
)
"""Rules on a type with `judges` and `gates`."""
JudgeList = Annotated[
    tuple[Judge, ...],
    Field(
        max_length=MAX_JUDGES,
        description="Judges of the answers, in addition to `metrics`. The value of a judge is the share of"
        " rows on which it prefers the answer of the tuned model, ties half; above 0.5 the tuned model is"
        " better. Rows of the split and the answers are sent to the endpoints. Default: none.",
    ),
]
