"""vLLM in an evaluate pod: one server per base model or whole model, for the subjects of an evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from finetune_operator.manifests.engines.vllm import MAX_CONCURRENT_REQUESTS, served_models
from finetune_trainer.contract.configs.answers import AnswerServer
from finetune_trainer.contract.configs.evaluate import EvaluateConfig
from finetune_trainer.contract.environment import (
    ANSWERS_MODELS,
    BASE_FOLDER,
    LIVE_BASE_FOLDER,
    LIVE_FOLDER,
    SERVE_PORT,
    TUNED_FOLDER,
)
from finetune_trainer.contract.vocabulary import FULL_MODEL, Subject

HOST: Final = "127.0.0.1"


@dataclass
class _Loaded:
    """What one server loads."""

    adapters: list[str] = field(default_factory=list)
    subjects: dict[Subject, str] = field(default_factory=dict)


def answer_servers(config: EvaluateConfig, accelerators: int) -> tuple[AnswerServer, ...]:
    """The servers for the subjects of an evaluation, in their order.

    Args:
        config: config of the stage, with an engine that is separate.
        accelerators: accelerators of the pod; 0 if devices are CPU cores.
    """
    engine = config.answer_engine
    if engine is None or not engine.is_separate:
        return ()
    servers: dict[str, _Loaded] = {}
    for subject, base, adapter in _weights(config):
        server = servers.setdefault(base, _Loaded())
        server.subjects[subject] = adapter or base
        if adapter is not None:
            server.adapters.append(adapter)
    return tuple(
        AnswerServer(
            command=tuple(_command(base, server.adapters, engine.max_lora_rank or 0, accelerators)),
            # A server with adapters has its base model under a name of its own.
            models={
                subject: BASE_FOLDER if name == base and server.adapters else name
                for subject, name in server.subjects.items()
            },
        )
        for base, server in servers.items()
    )


def _weights(config: EvaluateConfig) -> Iterator[tuple[Subject, str, str | None]]:
    """Each subject with its folder of a base or whole model, and that of its adapter."""
    for subject in config.subjects:
        if subject == "Live" and config.live is not None:
            base = BASE_FOLDER if config.live.base_model == config.base_model else LIVE_BASE_FOLDER
            type_, own = config.live.type, LIVE_FOLDER
        elif subject == "Tuned":
            type_, base, own = config.checkpoint_type, BASE_FOLDER, TUNED_FOLDER
        else:
            type_, base, own = FULL_MODEL, BASE_FOLDER, BASE_FOLDER
        yield (subject, own, None) if type_ == FULL_MODEL else (subject, base, own)


def _command(base: str, adapters: Sequence[str], rank: int, accelerators: int) -> Iterator[str]:
    """The command of a server. Requests set all that decides an answer, so that no file of a model does."""
    yield from ("vllm", "serve", f"{ANSWERS_MODELS}/{base}")
    if adapters:
        yield from served_models({name: f"{ANSWERS_MODELS}/{name}" for name in adapters}, rank)
    else:
        yield f"--served-model-name={base}"
    yield "--generation-config=vllm"
    yield "--max-model-len=auto"
    yield f"--max-num-seqs={MAX_CONCURRENT_REQUESTS}"
    if accelerators > 1:
        yield f"--tensor-parallel-size={accelerators}"
    yield from (f"--host={HOST}", f"--port={SERVE_PORT}")
