# SPDX-License-Identifier: Apache-2.0
"""Names of other fine-tuning and serving software, and the fields of this API that have their meaning.

docs/coming-from.md is generated from this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

JOB: Final = "FineTuneJob"
DATASET: Final = "Dataset"
PROFILE: Final = "ComputeProfile"
ENDPOINT: Final = "InferenceDeployment"


@dataclass(frozen=True, slots=True)
class ForeignName:
    """A name of other software.

    Attributes:
        name: the name, as users of that software write it.
        kind: our kind that has the field; empty if no field has the meaning.
        path: path of the field below `spec`, without indices of lists.
        difference: what to know in addition: another unit, another default, or what replaces a name that no
            field has. A sentence without its full stop.
    """

    name: str
    kind: str = ""
    path: str = ""
    difference: str = ""

    @property
    def advice(self) -> str:
        """What to write instead of the name. A sentence without its full stop."""
        field = (
            f"{self.name} is spec.{self.path} of a {self.kind}" if self.kind else f"{self.name} has no field"
        )
        return f"{field}: {self.difference}" if self.difference else field


FOREIGN_NAMES: Final[Mapping[str, tuple[ForeignName, ...]]] = {
    "OpenAI fine-tuning API": (
        ForeignName("model", JOB, "baseModel.uri", "a folder in a claim, at the hub or in a bucket"),
        ForeignName("suffix", JOB, "modelLine", "endpoints follow the line by this name"),
        ForeignName(
            "training_file",
            DATASET,
            "sources.uri",
            "the file stays where it is; nothing is uploaded",
        ),
        ForeignName(
            "validation_file",
            DATASET,
            "split.column",
            "by default a part of the rows is split off for validation, and another part for the test",
        ),
        ForeignName("method.type: supervised", JOB, "method.objective", "SFT, the default"),
        ForeignName("method.type: dpo", JOB, "method.objective", "DPO, with rows of format Preference"),
        ForeignName("method.type: reinforcement", difference="reinforcement learning is not in this release"),
        ForeignName("n_epochs", JOB, "hyperparameters.epochs"),
        ForeignName("batch_size", JOB, "hyperparameters.batchSize"),
        ForeignName(
            "learning_rate_multiplier",
            JOB,
            "hyperparameters.learningRate",
            "the peak learning rate itself; leave it out for one that fits the method and the model",
        ),
        ForeignName("beta", JOB, "method.preference.beta"),
        ForeignName("seed", JOB, "hyperparameters.seed"),
        ForeignName("POST …/cancel", JOB, "cancel"),
        ForeignName("POST …/pause", JOB, "suspend"),
        ForeignName(
            "fine_tuned_model",
            ENDPOINT,
            "models.name",
            "the name that requests to the endpoint give as model",
        ),
        ForeignName(
            "weight (of a message)",
            difference="every answer of the assistant is trained on; leave out the rows that must not be"
            " learned",
        ),
    ),
    "Axolotl": (
        ForeignName("base_model", JOB, "baseModel.uri"),
        ForeignName("revision_of_model", JOB, "baseModel.revision"),
        ForeignName("datasets[].path", DATASET, "sources.uri"),
        ForeignName("datasets[].type", DATASET, "sources.format", "detected if absent"),
        ForeignName("val_set_size", DATASET, "split.validation", "rows for the test are split off as well"),
        ForeignName("chat_template", difference="the template of the base model's tokenizer is used"),
        ForeignName("adapter: lora", JOB, "method.type", "LoRA, the default"),
        ForeignName("adapter: qlora", JOB, "method.type", "set it to QLoRA"),
        ForeignName("load_in_4bit", JOB, "method.type", "set it to QLoRA"),
        ForeignName("rl", JOB, "method.objective", "DPO, KTO or ORPO"),
        ForeignName("dpo_beta", JOB, "method.preference.beta"),
        ForeignName("lora_r", JOB, "method.lora.r"),
        ForeignName("lora_alpha", JOB, "method.lora.alpha"),
        ForeignName("lora_dropout", JOB, "method.lora.dropout"),
        ForeignName("lora_target_modules", JOB, "method.lora.targetModules"),
        ForeignName(
            "lora_target_linear",
            JOB,
            "method.lora.targetModules",
            "leave it out: all linear layers",
        ),
        ForeignName("peft_use_rslora", JOB, "method.lora.rsLoRA"),
        ForeignName("peft_use_dora", JOB, "method.lora.dora"),
        ForeignName("num_epochs", JOB, "hyperparameters.epochs"),
        ForeignName("max_steps", JOB, "hyperparameters.maxSteps"),
        ForeignName(
            "micro_batch_size",
            JOB,
            "hyperparameters.batchSize",
            "rows per optimizer step over all processes: micro_batch_size ×"
            " gradient_accumulation_steps × GPUs",
        ),
        ForeignName(
            "gradient_accumulation_steps",
            JOB,
            "hyperparameters.batchSize",
            "how a step is divided into batches follows from the memory of the devices",
        ),
        ForeignName("learning_rate", JOB, "hyperparameters.learningRate"),
        ForeignName("lr_scheduler", JOB, "hyperparameters.scheduler"),
        ForeignName("warmup_ratio", JOB, "hyperparameters.warmupRatio"),
        ForeignName(
            "warmup_steps",
            JOB,
            "hyperparameters.warmupRatio",
            "the share of all steps instead of their number",
        ),
        ForeignName("weight_decay", JOB, "hyperparameters.weightDecay"),
        ForeignName("sequence_len", JOB, "hyperparameters.maxSequenceLength"),
        ForeignName("excess_length_strategy", JOB, "dataset.onLongRows"),
        ForeignName(
            "sample_packing",
            difference="rows are packed without padding where the device supports it; nothing is to be set",
        ),
        ForeignName("train_on_inputs", difference="only answers are trained on"),
        ForeignName("gradient_checkpointing", JOB, "hyperparameters.gradientCheckpointing"),
        ForeignName("seed", JOB, "hyperparameters.seed"),
        ForeignName("eval_steps", JOB, "validation.everySteps"),
        ForeignName(
            "evals_per_epoch",
            JOB,
            "validation.everySteps",
            "optimizer steps between two validations",
        ),
        ForeignName("early_stopping_patience", JOB, "validation.earlyStoppingPatience"),
        ForeignName("save_steps", JOB, "checkpoints.stateEverySteps"),
        ForeignName("save_total_limit", JOB, "checkpoints.keep", "in addition to the best and the final one"),
        ForeignName("output_dir", JOB, "store.uri", "by default the store of the ComputeProfile"),
        ForeignName("lora_model_dir", JOB, "baseModel.checkpoint", "a Checkpoint of an earlier run"),
        ForeignName("deepspeed", JOB, "compute.sharding"),
        ForeignName("fsdp", JOB, "compute.sharding"),
    ),
    "TRL and PEFT": (
        ForeignName("model_name_or_path", JOB, "baseModel.uri"),
        ForeignName("dataset_name", DATASET, "sources.uri", "hf://datasets/ORG/NAME/PATH"),
        ForeignName("SFTTrainer", JOB, "method.objective", "SFT, the default"),
        ForeignName("DPOTrainer", JOB, "method.objective", "set it to DPO"),
        ForeignName("KTOTrainer", JOB, "method.objective", "set it to KTO"),
        ForeignName("ORPOTrainer", JOB, "method.objective", "set it to ORPO"),
        ForeignName("LoraConfig.r", JOB, "method.lora.r"),
        ForeignName("LoraConfig.lora_alpha", JOB, "method.lora.alpha"),
        ForeignName("LoraConfig.lora_dropout", JOB, "method.lora.dropout"),
        ForeignName("LoraConfig.target_modules", JOB, "method.lora.targetModules"),
        ForeignName("LoraConfig.use_rslora", JOB, "method.lora.rsLoRA"),
        ForeignName("LoraConfig.use_dora", JOB, "method.lora.dora"),
        ForeignName("load_in_4bit", JOB, "method.type", "set it to QLoRA"),
        ForeignName("num_train_epochs", JOB, "hyperparameters.epochs"),
        ForeignName("max_steps", JOB, "hyperparameters.maxSteps"),
        ForeignName(
            "per_device_train_batch_size",
            JOB,
            "hyperparameters.batchSize",
            "rows per optimizer step over all processes: per_device_train_batch_size ×"
            " gradient_accumulation_steps × GPUs",
        ),
        ForeignName(
            "gradient_accumulation_steps",
            JOB,
            "hyperparameters.batchSize",
            "how a step is divided into batches follows from the memory of the devices",
        ),
        ForeignName("learning_rate", JOB, "hyperparameters.learningRate"),
        ForeignName("lr_scheduler_type", JOB, "hyperparameters.scheduler"),
        ForeignName("warmup_ratio", JOB, "hyperparameters.warmupRatio"),
        ForeignName("weight_decay", JOB, "hyperparameters.weightDecay"),
        ForeignName("max_length", JOB, "hyperparameters.maxSequenceLength"),
        ForeignName("packing", difference="rows are packed without padding where the device supports it"),
        ForeignName("beta", JOB, "method.preference.beta"),
        ForeignName("desirable_weight", JOB, "method.preference.desirableWeight"),
        ForeignName("undesirable_weight", JOB, "method.preference.undesirableWeight"),
        ForeignName("eval_steps", JOB, "validation.everySteps"),
        ForeignName("save_steps", JOB, "checkpoints.stateEverySteps"),
        ForeignName("save_total_limit", JOB, "checkpoints.keep", "in addition to the best and the final one"),
        ForeignName("load_best_model_at_end", difference="the best Checkpoint is always kept"),
        ForeignName("gradient_checkpointing", JOB, "hyperparameters.gradientCheckpointing"),
        ForeignName("seed", JOB, "hyperparameters.seed"),
    ),
    "KAITO Workspace": (
        ForeignName(
            "resource.instanceType",
            JOB,
            "compute.profile",
            "the platform team makes ComputeProfiles",
        ),
        ForeignName("resource.labelSelector", PROFILE, "pods.nodeSelector"),
        ForeignName("resource.count", JOB, "compute.nodes"),
        ForeignName("tuning.preset.name", JOB, "baseModel.uri", "any model that transformers can load"),
        ForeignName("tuning.method", JOB, "method.type", "LoRA or QLoRA, or Full"),
        ForeignName("tuning.input.urls", DATASET, "sources.uri"),
        ForeignName("tuning.input.volume", DATASET, "sources.uri", "pvc://CLAIM/PATH"),
        ForeignName(
            "tuning.output.image",
            JOB,
            "store.uri",
            "weights go into the store, a claim or a bucket; an endpoint follows the model line",
        ),
        ForeignName("tuning.config", JOB, "hyperparameters"),
        ForeignName("inference.preset.name", ENDPOINT, "baseModel.uri"),
        ForeignName("inference.adapters", ENDPOINT, "models"),
    ),
    "Kubeflow Trainer v2": (
        ForeignName("runtimeRef", JOB, "compute.profile", "the image and the script are the operator's"),
        ForeignName("trainer.image", PROFILE, "images.trainer"),
        ForeignName("trainer.numNodes", JOB, "compute.nodes"),
        ForeignName(
            "trainer.resourcesPerNode",
            JOB,
            "compute.devices",
            "other sizes are in the ComputeProfile",
        ),
        ForeignName("trainer.env", PROFILE, "pods.env"),
        ForeignName("initializer.dataset.storageUri", DATASET, "sources.uri"),
        ForeignName("initializer.model.storageUri", JOB, "baseModel.uri"),
        ForeignName("initializer.model.secretRef", JOB, "baseModel.credentialsSecretRef"),
        ForeignName("runtimePatches", PROFILE, "pods"),
        ForeignName("podTemplateOverrides", PROFILE, "pods"),
        ForeignName("activeDeadlineSeconds", JOB, "compute.maxRunSeconds"),
        ForeignName("suspend", JOB, "suspend"),
        ForeignName("label kueue.x-k8s.io/queue-name", JOB, "compute.queueName"),
        ForeignName("LoraConfig.lora_rank", JOB, "method.lora.r"),
        ForeignName("LoraConfig.quantize_base", JOB, "method.type", "set it to QLoRA"),
    ),
    "KServe": (
        ForeignName("predictor.model.storageUri", ENDPOINT, "baseModel.uri"),
        ForeignName("predictor.model.runtime", PROFILE, "serving.engine"),
        ForeignName("predictor.model.args", ENDPOINT, "serving.extraEngineArguments"),
        ForeignName("predictor.minReplicas", ENDPOINT, "replicas"),
        ForeignName("predictor.maxReplicas", difference="an autoscaler of yours can scale the endpoint"),
        ForeignName("predictor.canaryTrafficPercent", ENDPOINT, "strategy.canary.steps.setWeight"),
        ForeignName("predictor.containerConcurrency", ENDPOINT, "serving.maxConcurrentRequests"),
        ForeignName("LLMInferenceService model.uri", ENDPOINT, "baseModel.uri"),
        ForeignName("LLMInferenceService model.lora.adapters", ENDPOINT, "models"),
        ForeignName("LLMInferenceService router.gateway", ENDPOINT, "traffic.gateway"),
    ),
}
"""By software. Kubeflow Trainer is that of TrainJobs; its release 2.2 replaced podTemplateOverrides."""
