"""Prometheus figures of a training pod, on `METRICS_PORT`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from finetune_trainer.contract import METRICS_PORT, Progress

logger = logging.getLogger(__name__)


class Metrics:
    """The newest figures; a pod trains one run, so they have no labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._gauges = {
            field: Gauge(f"finetune_trainer_{name}", text, registry=self.registry)
            for field, name, text in (
                ("step", "step", "Optimizer steps done."),
                ("total_steps", "total_steps", "Optimizer steps of the whole run."),
                ("epoch", "epoch", "Passes over the training rows, with a fraction."),
                ("loss", "loss", "Training loss in nats a token, mean of the last steps."),
                ("learning_rate", "learning_rate", "Learning rate of the last step."),
                ("tokens_per_second", "tokens_per_second", "Training tokens a second, padding not counted."),
                ("eta_seconds", "eta_seconds", "Seconds until the last step at the present pace."),
            )
        }
        self.validation_loss = Gauge(
            "finetune_trainer_validation_loss",
            "Validation loss in nats a token after the last epoch.",
            registry=self.registry,
        )

    def show(self, progress: Progress) -> None:
        """Take over the newest progress."""
        for field, gauge in self._gauges.items():
            value = getattr(progress, field)
            if value is not None:
                gauge.set(value)

    @contextmanager
    def served(self) -> Iterator[None]:
        """Answer scrapes meanwhile; training goes on without where the port is taken."""
        try:
            server, thread = start_http_server(METRICS_PORT, registry=self.registry)
        except OSError as error:
            logger.warning("metrics are not served, port %d cannot be used: %s", METRICS_PORT, error)
            yield
            return
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
