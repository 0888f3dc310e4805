# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of a training pod."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector, start_http_server

from finetune_trainer.contract.results import Progress

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)


class TrainingMetrics:
    """Metrics of the current run. A pod trains one run, so they have no label for it."""

    def __init__(
        self, device: "torch.device | None" = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """If `device` is a GPU, its memory is exported."""
        self._clock = clock
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._gauges = {
            field: Gauge(f"finetune_trainer_{name}", text, registry=self.registry)
            for field, name, text in (
                ("step", "step", "Optimizer steps done."),
                ("total_steps", "total_steps", "Optimizer steps of the whole run."),
                ("epoch", "epoch", "Passes over the training rows, with a fraction."),
                (
                    "loss",
                    "loss",
                    "Training loss in nats per token (DPO, KTO, ORPO: per row), mean of the last steps.",
                ),
                (
                    "reward_accuracy",
                    "reward_accuracy",
                    "DPO, ORPO: share of the last steps' pairs whose chosen answer has the higher reward.",
                ),
                (
                    "reward_margin",
                    "reward_margin",
                    "DPO, KTO, ORPO: mean reward of good answers minus that of bad ones, last steps.",
                ),
                ("learning_rate", "learning_rate", "Learning rate of the last step."),
                ("tokens_per_second", "tokens_per_second", "Training tokens per second, without padding."),
                ("eta_seconds", "eta_seconds", "Seconds until the last step at the current speed."),
                (
                    "device_memory_bytes",
                    "peak_memory_bytes",
                    "Peak GPU memory of tensors; on a CPU, peak memory of the process.",
                ),
                (
                    "validation_loss",
                    "validation_loss",
                    "Validation loss in nats per token after the last epoch.",
                ),
            )
        }
        self.validation_loss = self._gauges["validation_loss"]
        self.checkpoint_age = Gauge(
            "finetune_trainer_checkpoint_age_seconds",
            "Training that a kill would lose now: time since the last saved state, or since this pod began."
            " In a bucket a state counts from the start of its upload.",
            registry=self.registry,
        )
        self.memory_allocated = Gauge(
            "finetune_trainer_device_memory_allocated_bytes",
            "GPU memory in use by tensors.",
            ("device",),
            registry=self.registry,
        )
        self.memory_peak = Gauge(
            "finetune_trainer_device_memory_peak_bytes",
            "Peak GPU memory that PyTorch has reserved since the pod started.",
            ("device",),
            registry=self.registry,
        )
        self.memory_total = Gauge(
            "finetune_trainer_device_memory_total_bytes",
            "Memory of the GPU.",
            ("device",),
            registry=self.registry,
        )
        self.saved()
        self.checkpoint_age.set_function(lambda: self._clock() - self._saved_at)
        if device is not None and device.type == "cuda":
            self._show_memory(device)

    def show(self, progress: Progress) -> None:
        """Set the gauges to the newest progress."""
        for field, gauge in self._gauges.items():
            value = getattr(progress, field)
            if value is not None:
                gauge.set(value)

    def saved(self) -> None:
        """Record that a state was saved from which a restarted pod would resume."""
        self._saved_at = self._clock()

    @contextmanager
    def served(self, port: int) -> Iterator[None]:
        """Serve scrapes as long as the block runs; without metrics if the port is in use."""
        try:
            server, thread = start_http_server(port, registry=self.registry)
        except OSError as error:
            logger.warning("metrics are not served, because port %d cannot be used: %s", port, error)
            yield
            return
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _show_memory(self, device: "torch.device") -> None:
        import torch

        name = str(device)
        self.memory_allocated.labels(name).set_function(lambda: torch.cuda.memory_allocated(device))
        self.memory_peak.labels(name).set_function(lambda: torch.cuda.max_memory_reserved(device))
        self.memory_total.labels(name).set(torch.cuda.get_device_properties(device).total_memory)
