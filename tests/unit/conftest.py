# SPDX-License-Identifier: Apache-2.0
"""Tests that this machine cannot run are skipped by name; in CI each skip is a failure."""

from collections.abc import Generator

import pytest

from tools.bootstrap.skips import NO_TORCH, has_torch, in_ci

TORCH_PACKAGES = {"accelerate", "bitsandbytes", "lm_eval", "peft", "torch", "torchmetrics", "trl"}
"""Packages that an environment without PyTorch does not have."""


def _skip(report: pytest.CollectReport | pytest.TestReport, path: str, line: int) -> None:
    report.outcome = "skipped"
    report.longrepr = (path, line, f"Skipped: {NO_TORCH}")


def _fail_in_ci(report: pytest.CollectReport | pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and in_ci():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: CI skips no test. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    missing = (f"ModuleNotFoundError: No module named '{name}'" for name in TORCH_PACKAGES)
    if report.failed and not has_torch() and any(text in report.longreprtext for text in missing):
        _skip(report, str(collector.path), 0)
    _fail_in_ci(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, ModuleNotFoundError) and not has_torch():
        package = (error.name or "").partition(".")[0]
        if package in TORCH_PACKAGES:
            _skip(report, str(item.path), item.location[1] or 0)
    _fail_in_ci(report)
    return report
