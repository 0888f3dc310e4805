# SPDX-License-Identifier: Apache-2.0
"""Settings, evidence and engine of an evaluation of a Checkpoint.

The API shares the fields of generation, of the prompted model, of the metrics' options and of the checks.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract, Digest, PodPath, SharedPart
from finetune_trainer.contract.environment import ANSWERS_MOUNT
from finetune_trainer.contract.metrics import Metric
from finetune_trainer.contract.serving import EngineName
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, CheckpointType, Subject

OnFinding = Literal["Off", "Warn", "Veto"]
"""What a check does with what it finds."""


class GenerationFields(BaseModel):
    """How answers are generated, named as in the chat API of OpenAI."""

    max_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=32768,
            description="Max tokens of an answer. Default: the length of the expected answer and 16 more, at"
            " most 256.",
        ),
    ] = None
    temperature: Annotated[
        float,
        Field(ge=0, le=2, description="Sampling temperature; 0 always takes the most likely token."),
    ] = 0
    top_p: Annotated[
        float,
        Field(gt=0, le=1, description="Sample from the most likely tokens with this total probability."),
    ] = 1
    seed: Annotated[
        int, Field(ge=0, le=4294967295, description="Seed for sampling. It has no effect at temperature 0.")
    ] = 0


class GenerationSettings(GenerationFields, SharedPart):
    """How answers are generated, named as in the chat API of OpenAI."""


class PromptedFields(BaseModel):
    """Prompt of the subject Prompted: the base model with instructions and examples."""

    system_prompt: Annotated[
        str, Field(max_length=4096, description="Instructions in the system turn. Default: none.")
    ] = ""
    examples: Annotated[
        int, Field(ge=0, le=32, description="Number of training rows that the prompt shows as turns.")
    ] = 4


class PromptedModel(PromptedFields, SharedPart):
    """Prompt of the subject Prompted: the base model with instructions and examples."""

    seed: int = 0
    """Seed for the choice of the rows."""


class LiveModel(Contract):
    """The champion of the model line, which the subject Live measures. Its name is for messages."""

    name: str
    digest: Digest
    type: CheckpointType
    base_model: Digest
    quantized_base: bool = False
    chat_template_kwargs: ChatTemplateKwargs = Field(default={})


class MetricOptionsFields(BaseModel):
    """What some metrics need."""

    json_schema: Annotated[
        str | None, Field(max_length=8192, description="JSON Schema of the answers, as JSON text.")
    ] = None
    pattern: Annotated[
        str | None,
        Field(max_length=1024, description="Regular expression in the syntax of RE2 for a whole answer."),
    ] = None
    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
        Field(max_length=64, description="Labels of a classification. Default: those found in the data."),
    ] = ()
    constrained_labels: Annotated[
        bool,
        Field(
            description="Whether the answer to a classification is the most likely label instead of the"
            " generated text."
        ),
    ] = False


class MetricOptions(MetricOptionsFields, SharedPart):
    """What some metrics need."""


class GateBound(Contract):
    """What a gate asks of a metric, for which the trainer computes the evidence."""

    metric: Metric
    min: float | None = None
    max: float | None = None
    min_gain: float | None = None
    over: Subject | None = None
    """The subject that `min_gain` compares with."""
    confidence: float | None = None
    """Confidence level of the one-sided bounds; None: the point value decides."""


class GateEvidence(Contract):
    """What the rows say about one `GateBound`. The operator decides the gate by it.

    Bounds are one-sided at the confidence of the gate; None without a confidence.
    """

    gate: int
    """Index in `EvaluateConfig.gates`."""
    value: float | None = None
    """Value of the tuned model. A termination message has it even if it has no room for the scores."""
    low: float | None = None
    """Lower bound of the tuned model's value."""
    high: float | None = None
    """Upper bound of the tuned model's value."""
    gain: float | None = None
    """Gain over the compared subject, positive if the tuned model is better; None without one."""
    gain_low: float | None = None
    gain_high: float | None = None
    rows: int
    """Number of rows that the bounds rest on."""
    more_rows: int | None = None
    """Estimated number of additional rows that would decide an undecided gate; None: unknown."""
    undecided: str = ""
    """Why there is no bound, as a sentence for the user; empty if there are bounds."""


class EvaluationChecksFields(BaseModel):
    """Checks of the weights, in addition to the metrics."""

    no_change: Annotated[
        OnFinding,
        Field(
            description="What happens if the weights answer as the base model does. Veto: the evaluation"
            " fails."
        ),
    ] = "Veto"
    memorization: Annotated[
        OnFinding,
        Field(
            description="What happens if an answer repeats a secret or personal data of the training rows"
            " word for word. Veto: the evaluation fails."
        ),
    ] = "Veto"


class EvaluationChecks(EvaluationChecksFields, SharedPart):
    """Checks of the weights, in addition to the metrics."""


class CheckFinding(Contract):
    """What a check of the trained weights found."""

    check: Annotated[str, Field(max_length=63)]
    veto: bool
    """Whether it blocks the promotion."""
    message: Annotated[str, Field(max_length=512)]
    """What was found and what to do, as a sentence for the user."""


class UnmeasuredSubject(Contract):
    """A subject that could not be measured, although the evaluation went on."""

    subject: Subject
    message: Annotated[str, Field(max_length=512)]


class AnswerEngine(Contract):
    """What a ComputeProfile with another engine than the built-in one means for an evaluation."""

    name: EngineName
    """Transformers: the trainer generates the answers, because of `unsupported`."""
    image: str | None = None
    """Image of the engine's container."""
    max_lora_rank: int | None = None
    """Highest rank of the adapters; None if there are none."""
    arguments: tuple[str, ...] = ()
    """Arguments of the user for its command."""
    unsupported: Annotated[str, Field(max_length=512)] = ""
    """What the engine of the ComputeProfile cannot load, and what to do, as a sentence for the user."""
    folder: PodPath = ANSWERS_MOUNT
    """Folder of the pod in which prompts and answers are exchanged."""

    @property
    def is_separate(self) -> bool:
        """Whether the answers are generated in a container of their own."""
        return self.image is not None


class EngineVersion(Contract):
    """The engine that generated answers."""

    name: EngineName
    version: str
