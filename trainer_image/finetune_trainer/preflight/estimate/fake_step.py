# SPDX-License-Identifier: Apache-2.0
"""Measures one training step of a method on fake tensors: peak bytes of a process and operations.

It counts the bytes of live tensors and the floating-point operations. The figures of a deep model follow from
those of two shallow ones with the same layers.
"""

import copy
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from transformers.initialization import no_init_weights
from typing_extensions import override

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import OBJECTIVES, TYPES, Method
from finetune_trainer.distributed.process_group import ALONE
from finetune_trainer.model.adapted_layers import freeze_encoders
from finetune_trainer.preflight.estimate.fake_tensors import fake_tensors, in_backward, replaced
from finetune_trainer.tokens.encoding import EncodedAnswers, EncodedRow
from finetune_trainer.train import collation
from finetune_trainer.train.factory import make_trainer
from finetune_trainer.train.model_setup import Trainable, adapter_config, add_adapter
from finetune_trainer.train.preference.reference import ReferenceLikelihoods, Sequences

aten = torch.ops.aten

START: Final = ("start", 0)
ATTENTION: Final = frozenset(
    operation
    for operation in flop_registry
    if "scaled_dot_product" in str(operation) or "flash_attention" in str(operation)
)
"""Operations whose cost grows with the square of the length."""


def _grouped_flops(first: Tensor, second: Tensor, *_: Any, **__: Any) -> int:
    """FLOPs of a product per expert: the experts share the rows, the columns or the summed dimension."""
    groups = first.shape[0] if first.dim() == second.dim() == 3 else 1
    return 2 * groups * first.shape[-2] * first.shape[-1] * second.shape[-1]


def _grouped_backward_flops(*arguments: Tensor, **_: Any) -> int:
    """FLOPs of the gradients of both factors."""
    return 2 * _grouped_flops(*arguments)


FLOPS: Final[Mapping[Any, Callable[..., int]]] = {
    **flop_registry,
    aten._grouped_mm: _grouped_flops,
    torch.ops.transformers.grouped_mm_fallback: _grouped_flops,
    torch.ops.transformers.grouped_mm_fallback_backward: _grouped_backward_flops,
}
"""FLOPs of an operation by its arguments: PyTorch's, and the products of experts, which it does not count."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts live storages and their peak in each phase of a block, like an allocator without overhead.

    A storage counts from the first operation that returns it until it is freed. Works with real and with
    fake tensors.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        """Bytes of all live storages."""
        self.peaks: dict[tuple[str, int], int] = defaultdict(int)
        """Peak of `live` in each phase, in bytes."""
        self.matmul_flops = 0
        """Floating-point operations of matrix products, except in attention."""
        self.attention_flops = 0
        """Those of the two products of attention. A causal mask does not halve them."""
        self.operations = 0
        """Operations that write memory, each of which is at least one kernel."""
        self._phase = START
        self._storages: dict[int, int] = {}

    def begin(self, phase: tuple[str, int]) -> None:
        """Count the following operations in this phase."""
        self._phase = phase
        self._record()

    def add(self, tensor: Tensor) -> bool:
        """Count the storage of a tensor, and return whether it is new; also for one from before the block."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return False
        self._storages[key] = size = storage.nbytes()
        self.live += size
        self._record()
        weakref.finalize(storage, self._remove, key)
        return True

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        is_new = [self.add(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.operations += any(is_new) or func._schema.is_mutable
        count = FLOPS.get(func._overloadpacket)
        if count is not None:
            flops = count(*args, **(kwargs or {}), out_val=result)
            if func._overloadpacket in ATTENTION:
                self.attention_flops += flops
            else:
                self.matmul_flops += flops
        return result

    def _remove(self, key: int) -> None:
        self.live -= self._storages.pop(key, 0)

    def _record(self) -> None:
        self.peaks[self._phase] = max(self.peaks[self._phase], self.live)


STEPS: Final = 2
"""The second step has the state of the optimizer from its beginning."""
MIXED_PRECISION: Final = "ACCELERATE_MIXED_PRECISION"

Peaks = Mapping[tuple[str, int], int]
"""Peak bytes by phase of a step and layer; -1 is the last layer."""


@dataclass(frozen=True)
class StepShape:
    """What one process computes in a step."""

    rows: int
    """Rows per batch. A row of a preference method has two sequences."""
    length: int
    """Tokens per sequence."""
    checkpointing: bool = False
    """Whether activations are recomputed."""
    masks: bool = True
    """Whether attention reads a mask, as in padded batches."""
    accumulates: bool = True
    """Whether a step has several batches, whose gradients are accumulated."""


@dataclass(frozen=True)
class Precision:
    """The dtypes of a process."""

    weights: torch.dtype
    """Dtype of the base model, or of all weights of Full."""
    autocast: bool
    """Whether the forward pass runs under autocast to bfloat16, as on a GPU."""


@dataclass(frozen=True)
class StepMeasure:
    """Figures of one step of one process that holds all weights."""

    peaks: Peaks
    frozen_bytes: int
    trained_bytes: int
    matmul_flops: int
    """Of one batch, except those of attention."""
    attention_flops: int
    """Of one batch, without the saving of a causal mask."""
    operations: int = 0
    """Operations of one batch that write memory."""
    reference_matmul_flops: int = 0
    """As `matmul_flops`, of what the reference model says about one batch, once before training."""
    reference_attention_flops: int = 0

    @property
    def peak_bytes(self) -> int:
        """Peak bytes of live tensors, weights included."""
        return max(self.peaks.values())


def measure_step(
    config: PretrainedConfig,
    method: Method,
    shape: StepShape,
    precision: Precision,
    *,
    keeps_gradients: bool = True,
) -> StepMeasure:
    """Run two steps on fake tensors.

    Args:
        config: that of the base model; all of its layers are computed.
        method: the method with the settings of its adapter.
        shape: rows and tokens of a batch.
        precision: dtypes.
        keeps_gradients: whether gradients of weights are kept until the optimizer's step. False for sharded
            weights, whose gradients leave the process during the backward pass.
    """
    batches = 2 if shape.accumulates else 1
    with (
        TemporaryDirectory() as folder,
        _autocast(precision.autocast),
        fake_tensors(masks=shape.masks, on_gpu=precision.autocast),
        # Its predictions have no content to compare. Padded rows cost what packed ones cost.
        replaced(collation, "isolates_packed_rows", lambda *_: False),
        LiveBytes() as live,
    ):
        model = _fake_model(config, method, precision)
        weights = _bytes_of_weights(model)
        phases = _Phases(live)
        phases.watch(decoder_layers(model, config))
        if not keeps_gradients:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_drop_gradient)  # type: ignore[no-untyped-call]
        reference = _ReferenceFlops(live)
        trainer = make_trainer(
            model,
            _rows(method, shape, STEPS * batches * shape.rows),
            tokenizer=_tokenizer(),
            method=method,
            hyperparameters=_hyperparameters(shape, batches),
            folder=Path(folder),
            device=torch.device("cpu"),
            continues=False,
            group=ALONE,
            references=reference,
        )
        trainer.add_callback(phases)
        live.peaks.clear()
        live.matmul_flops = live.attention_flops = live.operations = 0
        trainer.train()
    return StepMeasure(
        peaks=dict(live.peaks),
        frozen_bytes=weights[False],
        trained_bytes=weights[True],
        matmul_flops=live.matmul_flops // (STEPS * batches),
        attention_flops=live.attention_flops // (STEPS * batches),
        operations=live.operations // (STEPS * batches),
        reference_matmul_flops=reference.matmul_flops // (STEPS * batches),
        reference_attention_flops=reference.attention_flops // (STEPS * batches),
    )


class _ReferenceFlops(ReferenceLikelihoods):
    """Counts the operations of the pass of the reference model over all rows."""

    def __init__(self, live: LiveBytes) -> None:
        self._live = live
        self.matmul_flops = self.attention_flops = 0

    @override
    def look_up(self, sequences: Sequences, compute: Callable[[], Tensor]) -> Tensor:
        self._live.matmul_flops = self._live.attention_flops = 0
        computed = compute()
        self.matmul_flops, self.attention_flops = self._live.matmul_flops, self._live.attention_flops
        return computed


def _fake_model(config: PretrainedConfig, method: Method, precision: Precision) -> Trainable:
    """The model of a method, as `trainable_model` prepares it, but never quantized."""
    torch.set_default_dtype(precision.weights)
    try:
        # PEFT makes an adapter in float32, which is the default dtype again afterwards.
        # Initial values would be drawn until they are in range, which those of fake tensors never are.
        with no_init_weights():
            base: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=precision.weights
            )
        base.tie_weights()
    finally:
        torch.set_default_dtype(torch.float32)
    if not TYPES[method.type].trains_adapter:
        freeze_encoders(base)
        return base
    return add_adapter(base, adapter_config(base, method), autocast=precision.autocast)


def _bytes_of_weights(model: nn.Module) -> dict[bool, int]:
    """Bytes of frozen (False) and of trained (True) weights."""
    sizes = {False: 0, True: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel() * parameter.element_size()
    return sizes


def decoder_layers(model: nn.Module, config: PretrainedConfig) -> nn.ModuleList | None:
    """The list of the model's layers; None if there is no list of that length."""
    depth = config.get_text_config().num_hidden_layers
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((each for each in lists if len(each) == depth), None)


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _rows(method: Method, shape: StepShape, count: int) -> list[Any]:
    """Rows of equal length; all tokens have labels, except the first, which is the prompt of an answer."""
    tokens = [0] * shape.length
    if not OBJECTIVES[method.objective].rows.is_preference_data:
        return [EncodedRow(input_ids=tokens, labels=tokens)] * count
    prompt, answer = tokens[:1], tokens[1:]
    return [EncodedAnswers(prompt, answer, rejected=answer, label=bool(index % 2)) for index in range(count)]


def _hyperparameters(shape: StepShape, batches: int) -> Hyperparameters:
    return Hyperparameters(
        epochs=1,
        learning_rate=1e-5,
        batch_size=batches * shape.rows,
        max_batch_rows=shape.rows,
        max_sequence_length=shape.length,
        seed=0,
        total_steps=STEPS,
        warmup_ratio=0,
        scheduler="Constant",
        weight_decay=0,
        save_every_steps=STEPS,
        gradient_checkpointing=shape.checkpointing,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of one token: the rows are tokenized already, and batches need a token to pad with."""
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>"
    )


@contextmanager
def _autocast(enabled: bool) -> Iterator[None]:
    """In the block, new Trainers wrap models as on a GPU (True) or as on a CPU."""
    before = os.environ.get(MIXED_PRECISION)
    os.environ[MIXED_PRECISION] = "bf16" if enabled else "no"
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        if before is None:
            del os.environ[MIXED_PRECISION]
        else:
            os.environ[MIXED_PRECISION] = before


class _Phases(TrainerCallback):
    """Tells the counter which layer is computed, by hooks that keep no tensors."""

    def __init__(self, live: LiveBytes) -> None:
        self._live = live

    def watch(self, layers: nn.ModuleList | None) -> None:
        """Begin a phase with the forward and backward pass of each layer."""
        for index, layer in enumerate(layers or ()):
            layer.register_forward_pre_hook(lambda *_, index=index: self._forward(index))
            layer.register_forward_hook(
                lambda _, __, output, index=index: self._after(output, index, len(layers or ()))
            )

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Embed the tokens."""
        self._live.begin(("embedding", 0))

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Change the weights."""
        self._live.begin(("update", 0))

    def _forward(self, index: int) -> None:
        if not in_backward():
            self._live.begin(("forward" if torch.is_grad_enabled() else "inference", index))

    def _after(self, output: Any, index: int, layers: int) -> None:
        if in_backward():
            return
        if index == layers - 1:
            self._live.begin(("head", 0))
        hidden = next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
        if hidden.requires_grad:
            hidden.register_hook(  # type: ignore[no-untyped-call]
                lambda _: self._live.begin(("backward", index))
            )


EXTENSIVE: Final = (
    "frozen_bytes",
    "trained_bytes",
    "matmul_flops",
    "attention_flops",
    "operations",
    "reference_matmul_flops",
    "reference_attention_flops",
)
"""Figures to which each layer adds."""
MAX_PERIOD: Final = 8
"""Longest pattern of layer types that is searched for."""


def with_depth(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """A copy of the config with the first layers only."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    depth = text.num_hidden_layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return shallow


def period(config: PretrainedConfig) -> int:
    """Number of layers after which the types of layers repeat; 1 if they have no such pattern."""
    types: list[Any] = list(getattr(config.get_text_config(), "layer_types", None) or [])
    for length in range(1, MAX_PERIOD + 1):
        if all(types[at] == types[at - length] for at in range(length, len(types))):
            return length
    return 1


def measure_at_depth(
    config: PretrainedConfig, measure: Callable[[PretrainedConfig], StepMeasure]
) -> StepMeasure:
    """What `measure` returns for a config, from two models of a few layers.

    Equal layers add equal amounts to every figure: to the peak while the first or the last layers are
    computed, to the weights, and to the operations. The two models differ by one period of layers, and the
    shallower one has the same layers at its end as the whole model.
    """
    layers: int = config.get_text_config().num_hidden_layers
    step = period(config)
    shallow = max(2, step) + (layers - max(2, step)) % step
    if layers <= shallow + step:
        return measure(config)
    first, second = (measure(with_depth(config, depth)) for depth in (shallow, shallow + step))
    periods = (layers - shallow) // step

    def extrapolated(low: int, high: int) -> int:
        return low + (high - low) * periods

    low_ends, high_ends = _ends(first, shallow, step), _ends(second, shallow + step, step)
    return StepMeasure(
        # With as many layers as a period has, what is outside of the layers would count as a last layer.
        peaks={
            phase: extrapolated(low_ends[phase], high_ends[phase])
            for phase in low_ends.keys() & high_ends.keys()
        },
        **{name: extrapolated(getattr(first, name), getattr(second, name)) for name in EXTENSIVE},
    )


def _ends(measured: StepMeasure, layers: int, step: int) -> dict[tuple[str, int], int]:
    """Peaks of the first and the last layers, which count from -1."""
    ends: dict[tuple[str, int], int] = {}
    for (phase, index), bytes_ in measured.peaks.items():
        if index < step:
            ends[phase, index] = bytes_
        if index >= layers - step:
            ends[phase, index - layers] = bytes_
    return ends
