# SPDX-License-Identifier: Apache-2.0
"""Series of deleted namespaces and profiles end, but not before Prometheus can scrape them."""

from finetune_operator.metrics.process_metrics import OperatorMetrics, SeriesRetention
from finetune_operator.plan import Key


def series(metrics: OperatorMetrics, **labels: str) -> int:
    return sum(
        1
        for metric in metrics.registry.collect()
        for sample in metric.samples
        if labels.items() <= sample.labels.items()
    )


def counted(*namespaces: str) -> OperatorMetrics:
    metrics = OperatorMetrics()
    for namespace in namespaces:
        metrics.begin_namespace(namespace)
        metrics.begin_profile(namespace, "a100")
        metrics.cost.labels(namespace, "EUR").inc()
    return metrics


def test_series_of_a_namespace_end_a_period_after_its_last_object() -> None:
    metrics = counted("preview", "team")
    keys = [
        Key("FineTuneJob", "preview", "run"),
        Key("Dataset", "team", "d"),
        Key("ComputeProfile", "", "a100"),
    ]
    retention = SeriesRetention(metrics, lambda: keys, 600)
    empty, before = series(OperatorMetrics()), series(metrics)
    retention.sweep()
    del keys[0]
    retention.sweep()
    assert series(metrics) == before, "what was counted last is still to be scraped"
    retention.sweep()
    assert series(metrics, namespace="preview") == 0
    assert series(metrics, namespace="team") > 0
    del keys[:]
    retention.sweep()
    retention.sweep()
    assert series(metrics) == empty


def test_a_namespace_that_comes_back_in_time_keeps_its_series() -> None:
    metrics = counted("team")
    keys = [Key("ComputeProfile", "", "a100")]
    retention = SeriesRetention(metrics, lambda: keys, 600)
    retention.sweep()
    keys.append(Key("Dataset", "team", "d"))
    retention.sweep()
    keys.pop()
    retention.sweep()
    assert series(metrics, namespace="team") > 0


def test_series_of_a_deleted_profile_end_in_every_namespace() -> None:
    metrics = counted("team", "other")
    keys = [Key("Dataset", "team", "d"), Key("Dataset", "other", "d")]
    retention = SeriesRetention(metrics, lambda: keys, 600)
    retention.sweep()
    retention.sweep()
    assert series(metrics, profile="a100") == 0
    assert series(metrics, namespace="team") > 0
