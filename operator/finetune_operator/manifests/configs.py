# SPDX-License-Identifier: Apache-2.0
"""The config of each stage, from the API's types."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypedDict, cast

from pydantic import JsonValue

from finetune_operator.api.checkpoint import AdapterRecord
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset import DataPreparation, RowSource
from finetune_operator.api.evaluation import EvaluationSettings
from finetune_operator.api.finetune_job import FineTuneJobSpec
from finetune_operator.api.finetune_job_status import Resolved
from finetune_operator.api.meta import Model, Resource
from finetune_operator.api.training import Method, ResolvedHyperparameters
from finetune_operator.manifests.answer_engine import AnsweringModel, choose_answer_engine
from finetune_operator.manifests.trainer_config import StageInputs
from finetune_operator.manifests.volumes import parse_source, secret_mount
from finetune_operator.manifests.weights import EvaluatedWeights
from finetune_trainer.contract.configs import (
    STEP_TIMEOUT_SECONDS,
    CleanupConfig,
    CollectConfig,
    EvaluateConfig,
    PreflightConfig,
    PrepareConfig,
    ScoreConfig,
    SourceConfig,
    TrainConfig,
)
from finetune_trainer.contract.dataset import Checks, Cleaning, Columns, Split
from finetune_trainer.contract.environment import (
    BASE_MODEL_MOUNT,
    DATASET_MOUNT,
    PEER_KEY_FILE,
    PEER_KEY_MOUNT,
    PREDICTIONS_MOUNT,
    SOURCES_MOUNT,
)
from finetune_trainer.contract.evaluation import (
    AnswerEngine,
    EvaluationChecks,
    GateBound,
    GenerationSettings,
    LiveModel,
    MetricOptions,
    PromptedModel,
)
from finetune_trainer.contract.hyperparameters import Hyperparameters, RequestedHyperparameters
from finetune_trainer.contract.method import TYPES, LoRA, Preference, RequestedLoRA, RequestedMethod
from finetune_trainer.contract.method import Method as ContractMethod
from finetune_trainer.contract.metrics import METRICS
from finetune_trainer.contract.own_metrics import CustomMetric as MountedMetric
from finetune_trainer.contract.references import ArtifactRef, ParentCheckpoint, StoreConfig
from finetune_trainer.contract.results import SourceRows
from finetune_trainer.contract.vocabulary import (
    RULE_VERSION,
    ChatTemplateKwargs,
    CheckpointType,
    SplitName,
    Stage,
)

FeatureFields: TypeAlias = Mapping[str, Any]
"""Fields of a config that belong to the features of an evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredData:
    """The rows that an evaluation measures on."""

    dataset: str
    """Digest of the rows' DatasetVersion."""
    split: SplitName = "test"
    group_by: str | None = None
    """Column whose rows are together in one split."""
    training: str | None = None
    """Digest of the rows that the weights were trained on; None if they are not recorded any more."""
    shows_training: bool = False
    """Whether Prompted shows rows of `training`, and not training rows of `dataset`."""


def evaluate_config(
    inputs: StageInputs,
    evaluation: EvaluationSettings,
    weights: EvaluatedWeights,
    data: MeasuredData,
    *,
    features: FeatureFields,
    step_timeout_seconds: int | None,
    live: LiveModel | None = None,
    live_adapter: AdapterRecord | None = None,
    profile: ComputeProfile | None = None,
) -> EvaluateConfig:
    """The config of evaluate, which measures one Checkpoint: the requested metrics and those of the gates.

    Args:
        features: fields of the features that the evaluation uses.
        live: the champion to compare with, if the evaluation does and the model line has one.
        live_adapter: properties of its adapter; None if they are not recorded.
        profile: ComputeProfile of the stage, whose engine generates the answers.
    """
    return EvaluateConfig(
        **inputs.shared,
        accelerators=inputs.requested_accelerators,
        base_model=weights.base_model,
        dataset=data.dataset,
        training_dataset=data.training,
        shown_dataset=data.training if data.shows_training else None,
        checkpoint=weights.digest,
        checkpoint_type=weights.type,
        probe=weights.probe,
        quantized_base=weights.quantized_base,
        split=data.split,
        chat_template_kwargs=weights.chat_template_kwargs,
        metrics=evaluation.measured_metrics,
        subjects=tuple(subject for subject in evaluation.subjects if subject != "Live" or live is not None),
        live=live,
        max_sequence_length=weights.hyperparameters.max_sequence_length,
        seed=weights.hyperparameters.seed,
        step_timeout_seconds=step_timeout_seconds or STEP_TIMEOUT_SECONDS,
        generation=GenerationSettings(**_fields(evaluation.generation)),
        options=metric_options(evaluation),
        prompted=PromptedModel(**_fields(evaluation.prompted), seed=weights.hyperparameters.seed),
        gates=tuple(GateBound(**gate.model_dump()) for gate in evaluation.gates),
        slice_by=evaluation.slice_by,
        group_by=data.group_by,
        checks=EvaluationChecks(**_fields(evaluation.checks)),
        **features,
        answer_engine=_answer_engine(profile, evaluation, weights, live, live_adapter),
    )


def score_config(
    inputs: StageInputs,
    evaluation: EvaluationSettings,
    data: MeasuredData,
    *,
    custom_metrics: tuple[MountedMetric, ...],
) -> ScoreConfig:
    """The config of score, whose pod has no store and reports no progress."""
    return ScoreConfig(
        contract=inputs.contract_version,
        owner=inputs.contract_owner,
        run=inputs.run,
        store=StoreConfig(uri=inputs.store_uri, path=""),
        predictions_path=PREDICTIONS_MOUNT,
        dataset_path=DATASET_MOUNT,
        split=data.split,
        group_by=data.group_by,
        metrics=custom_metrics,
        gates=tuple(GateBound(**gate.model_dump()) for gate in evaluation.gates),
    )


def _answer_engine(
    profile: ComputeProfile | None,
    evaluation: EvaluationSettings,
    weights: EvaluatedWeights,
    live: LiveModel | None,
    live_adapter: AdapterRecord | None,
) -> AnswerEngine | None:
    if profile is None or not any(map(evaluation.reads_answers, evaluation.measured_metrics)):
        return None
    models = [AnsweringModel("the evaluated Checkpoint", weights.adapter)]
    if live is not None:
        models.append(AnsweringModel(f"the champion {live.name}", live_adapter))
    return choose_answer_engine(profile, models, evaluation.extra_engine_arguments)


def metric_options(evaluation: EvaluationSettings | None) -> MetricOptions:
    """The options of the metrics."""
    return MetricOptions(**_fields(None if evaluation is None else evaluation.options))


def _fields(part: Model | None) -> dict[str, Any]:
    """Fields of a part of the spec that the contract also has; none if the part is absent."""
    return {} if part is None else part.model_dump()


def prepare_config(
    inputs: StageInputs,
    sources: Mapping[str, RowSource],
    preparation: DataPreparation,
    *,
    rule_version: int = RULE_VERSION,
    previous: str | None = None,
    previous_sources: Sequence[SourceRows] = (),
    known_versions: Sequence[str | None] = (),
) -> PrepareConfig:
    """The config of prepare, which turns sources into a dataset folder.

    Args:
        sources: sources by the field of the spec that names them.
        rule_version: version of the rules for reading and comparing rows.
        previous: digest of the version to compare with.
        previous_sources: origin of the rows of that version.
        known_versions: versions of the sources at which nothing is prepared.
    """
    known = [*known_versions, *[None] * len(sources)]
    return PrepareConfig(
        **inputs.shared,
        sources=tuple(
            _source(number, field, source, known[number])
            for number, (field, source) in enumerate(sources.items())
        ),
        template=preparation.template,
        cleaning=Cleaning(**_fields(preparation.cleaning)),
        checks=Checks(**_fields(preparation.checks)),
        split=Split(**_fields(preparation.split)),
        rule_version=rule_version,
        keep_columns=preparation.keep_columns,
        on_invalid_rows=preparation.on_invalid_rows,
        max_invalid_fraction=preparation.max_invalid_fraction,
        max_unpacked_bytes=inputs.max_unpacked_bytes,
        previous=previous,
        previous_sources=tuple(previous_sources),
    )


def _source(number: int, field: str, source: RowSource, known_version: str | None) -> SourceConfig:
    secret = source.credentials_secret_ref
    return SourceConfig(
        field=field,
        uri=source.uri,
        path=_mounted(source.uri, f"{SOURCES_MOUNT}/{number}"),
        credentials=secret_mount("source", secret.name if secret else None, number),
        format=source.format,
        columns=Columns(**_fields(source.columns)),
        splits=source.splits,
        known_version=known_version,
    )


def _mounted(uri: str, mount: str) -> str | None:
    """The path in the pod; None for a source on the network."""
    place = parse_source(uri)
    return None if place is None else place.under(mount)


def _requested(method: Method) -> RequestedMethod:
    return RequestedMethod(
        objective=method.objective,
        type=method.type,
        lora=RequestedLoRA(**_fields(method.lora)),
        preference=Preference(**_fields(method.preference)),
    )


def _resolved(method: Method, resolved: Resolved) -> ContractMethod:
    """The method with the settings that preflight has chosen."""
    return ContractMethod(
        objective=method.objective,
        type=method.type,
        lora=LoRA(**_fields(resolved.lora)),
        preference=Preference(**_fields(resolved.preference)),
    )


def _parent(spec: FineTuneJobSpec, resolved: Resolved) -> ParentCheckpoint | None:
    if resolved.parent_checkpoint is None or resolved.parent_digest is None:
        return None
    return ParentCheckpoint(
        name=resolved.parent_checkpoint, digest=resolved.parent_digest, type=checkpoint_type(spec.method)
    )


def template_arguments(resolved: Resolved) -> ChatTemplateKwargs:
    """Arguments for the chat template, which `validate` has checked."""
    return template_arguments_of(resolved.chat_template_kwargs)


def template_arguments_of(kwargs: Mapping[str, JsonValue] | None) -> ChatTemplateKwargs:
    """Arguments for the chat template of a record, whose run `validate` has checked."""
    return cast(ChatTemplateKwargs, kwargs or {})


def preflight_config(
    inputs: StageInputs, spec: FineTuneJobSpec, resolved: Resolved, features: FeatureFields
) -> PreflightConfig:
    """The config of preflight, which checks the base model and the data.

    A run that continues from a Checkpoint reads its base model from the store, and not from a mounted volume.
    If it names a base model in addition to a champion, preflight reads that one and compares it with the
    champion's. At the hub it is the same commit, unless the run names another one.
    """
    given, secret, requested = spec.base_model, spec.base_model.credentials_secret_ref, spec.hyperparameters
    parent = _parent(spec, resolved)
    is_recorded = given.uri in (None, resolved.base_model_uri)
    metrics = () if spec.evaluation is None else spec.evaluation.measured_metrics
    return PreflightConfig(
        **inputs.shared,
        base_model_uri=given.uri or resolved.base_model_uri or "",
        base_model_path=_mounted(given.uri, BASE_MODEL_MOUNT) if given.uri else None,
        base_model_revision=given.revision or (resolved.base_model_revision if is_recorded else None),
        base_model_credentials=secret_mount("base-model", secret.name if secret else None),
        base_model_digest=given.digest if parent is None else resolved.base_model_digest,
        base_model_named=parent is not None and given.uri is not None,
        parent=parent,
        dataset=resolved.dataset_digest or "",
        method=_requested(spec.method),
        chat_template_kwargs=template_arguments(resolved),
        hyperparameters=RequestedHyperparameters(
            **requested.model_dump(),
            save_every_steps=spec.checkpoints.state_every_steps,
            validate_every_steps=spec.validation.every_steps,
            early_stopping_patience=spec.validation.early_stopping_patience,
            on_long_rows=spec.dataset.on_long_rows,
        ),
        keep_steps=spec.checkpoints.keep_steps or (),
        devices=inputs.accelerators,
        nodes=spec.compute.nodes,
        device=inputs.device,
        host_memory_bytes=inputs.host_memory_bytes,
        on_predicted_out_of_memory=spec.compute.on_predicted_out_of_memory or "Refuse",
        sharding=spec.compute.sharding or "Auto",
        mfu=inputs.mfu,
        metrics=tuple(metric for metric in metrics if METRICS[metric].needs_more_than_answers),
        options=metric_options(spec.evaluation),
        slice_by=None if spec.evaluation is None else spec.evaluation.slice_by,
        learning_curve=(shares := _curve_shares(spec)),
        max_run_seconds=inputs.max_run_seconds if shares else None,
        **features,
        **_test_rows(spec, resolved),
    )


class _TestRows(TypedDict):
    test_dataset: str | None
    test_split: SplitName


def _test_rows(spec: FineTuneJobSpec, resolved: Resolved) -> _TestRows:
    """The rows of another Dataset that the run is evaluated on, if there are such rows."""
    rows = spec.evaluation.dataset if spec.evaluation else None
    return {
        "test_dataset": resolved.evaluation_dataset_digest,
        "test_split": "test" if rows is None else rows.split,
    }


def _curve_shares(spec: FineTuneJobSpec) -> tuple[float, ...]:
    return () if spec.learning_curve is None else spec.learning_curve.extra_shares


def train_config(
    inputs: StageInputs,
    spec: FineTuneJobSpec,
    resolved: Resolved,
    hyperparameters: ResolvedHyperparameters,
    *,
    group_by: str | None = None,
) -> TrainConfig:
    """The config of train, with all values resolved.

    Args:
        group_by: column whose rows are together in one split.
    """
    return TrainConfig(
        **inputs.shared,
        accelerators=inputs.requested_accelerators,
        base_model=resolved.base_model_digest or "",
        parent=_parent(spec, resolved),
        dataset=resolved.dataset_digest or "",
        method=_resolved(spec.method, resolved),
        chat_template_kwargs=template_arguments(resolved),
        hyperparameters=Hyperparameters(**hyperparameters.model_dump()),
        keep=spec.checkpoints.keep or 0,
        keep_steps=spec.checkpoints.keep_steps or (),
        step_timeout_seconds=spec.compute.step_timeout_seconds or STEP_TIMEOUT_SECONDS,
        nodes=spec.compute.nodes,
        devices=inputs.accelerators,
        coordinator=inputs.coordinator,
        peer_key_path=f"{PEER_KEY_MOUNT}/{PEER_KEY_FILE}" if inputs.coordinator else None,
        learning_curve=(shares := _curve_shares(spec)),
        group_by=group_by if shares else None,
        max_run_seconds=inputs.max_run_seconds if shares else None,
        **_test_rows(spec, resolved),
    )


def checkpoint_type(method: Method) -> CheckpointType:
    """Type of the Checkpoints that a method makes."""
    return TYPES[method.type].checkpoint_type


def cleanup_config(
    owner: Resource, store_uri: str, secret: str | None, content: ArtifactRef | str | None, version: int
) -> CleanupConfig:
    """The config of cleanup, which removes an artifact or the folder of a run from a store.

    Args:
        secret: name of the Secret with the credentials of the store.
        content: an artifact, or the name of a folder under `runs/`; None: that of the owner.
        version: version of the contract that the pod's trainer reads.
    """
    inputs = StageInputs(
        owner=owner, run=owner.uid, store_uri=store_uri, report=None, store_credentials=secret
    )
    return CleanupConfig(
        contract=version,
        owner=inputs.contract_owner,
        store=inputs.store,
        artifact=content if isinstance(content, ArtifactRef) else None,
        run=None if isinstance(content, ArtifactRef) else content or owner.uid,
    )


def collect_config(inputs: StageInputs, stage: Stage, *, probe: bool = False) -> CollectConfig:
    """The config of collect, which reads the stored result of a stage; with `probe` it checks the store."""
    return CollectConfig(**inputs.shared, of=stage, probe=probe)
