# SPDX-License-Identifier: Apache-2.0
"""The metrics of a training pod."""

import httpx
import pytest

from finetune_trainer.contract.results import Progress
from finetune_trainer.train.figures import AVERAGED_STEPS, StepFigures, Throughput
from finetune_trainer.train.training_metrics import TrainingMetrics
from tools.cluster.layout import free_port


def test_progress_is_shown_under_its_prometheus_names() -> None:
    metrics = TrainingMetrics()

    metrics.show(Progress(step=3, total_steps=9, epoch=0.5, loss=1.25, learning_rate=1e-3, eta_seconds=6))

    shown = {sample.name: sample.value for family in metrics.registry.collect() for sample in family.samples}
    assert shown["finetune_trainer_step"] == 3
    assert shown["finetune_trainer_total_steps"] == 9
    assert shown["finetune_trainer_epoch"] == 0.5
    assert shown["finetune_trainer_loss"] == 1.25
    assert shown["finetune_trainer_learning_rate"] == 1e-3
    assert shown["finetune_trainer_eta_seconds"] == 6


def test_the_age_of_the_checkpoint_begins_with_the_pod_and_anew_with_every_save() -> None:
    now = 100.0
    metrics = TrainingMetrics(clock=lambda: now)

    def age() -> float | None:
        return metrics.registry.get_sample_value("finetune_trainer_checkpoint_age_seconds")

    assert age() == 0
    now = 160.0
    assert age() == 60
    metrics.saved()
    assert age() == 0


def test_memory_of_a_device_is_shown_on_a_gpu_only() -> None:
    samples = [sample.name for family in TrainingMetrics().registry.collect() for sample in family.samples]
    assert "process_resident_memory_bytes" in samples
    assert not any("device_memory" in name for name in samples)


def test_training_goes_on_without_metrics_where_the_port_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with TrainingMetrics().served(port):
        assert "finetune_trainer_step" in httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        with TrainingMetrics().served(port):
            assert f"port {port} cannot be used" in caplog.text
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)


def test_the_loss_shown_is_the_token_mean_of_the_last_steps() -> None:
    throughput = Throughput(total_steps=100)
    throughput.begin_step()
    throughput.end_step(StepFigures(loss_sum=1000, labels=10, tokens=10))
    for _ in range(AVERAGED_STEPS - 1):
        throughput.end_step(StepFigures(loss_sum=2, labels=2, tokens=10))
    throughput.end_step(StepFigures(loss_sum=30, labels=10, tokens=10))

    progress = throughput.progress(step=21, epoch=1, learning_rate=1e-3)

    assert progress.loss == pytest.approx((2 * (AVERAGED_STEPS - 1) + 30) / (2 * (AVERAGED_STEPS - 1) + 10))
    assert progress.step == 21
    assert progress.total_steps == 100


def test_nothing_is_left_to_wait_for_after_the_last_step() -> None:
    throughput = Throughput(total_steps=1)
    throughput.begin_step()
    throughput.end_step(StepFigures(loss_sum=1, labels=1, tokens=1))

    assert throughput.progress(step=1, epoch=1, learning_rate=0).eta_seconds == 0
