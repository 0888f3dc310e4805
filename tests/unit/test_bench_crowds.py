# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of crowds compare each figure with the ceiling that their code states."""

from dataclasses import replace

import pytest

from tools.bench.operator.crowds.__main__ import CROWDS
from tools.bench.operator.crowds.crowd import Ceilings, PhaseFigures
from tools.bench.page import PAGE, BenchError

FIGURES = tuple(Ceilings.__dataclass_fields__)


def at_the_ceiling(ceilings: Ceilings) -> PhaseFigures:
    bounds = {name: getattr(ceilings, name) for name in FIGURES}
    return PhaseFigures(**bounds, seconds=90, lists=3, processor_seconds=1)


@pytest.mark.parametrize("name", CROWDS)
def test_a_figure_above_its_ceiling_is_named_with_its_phase(name: str) -> None:
    crowd = CROWDS[name]
    phases = {phase: at_the_ceiling(ceilings) for phase, ceilings in crowd.ceilings.items()}
    assert crowd.exceeded(phases) == []
    phase = next(iter(phases))
    for figure in FIGURES:
        above = replace(phases[phase], **{figure: getattr(phases[phase], figure) + 1})
        (told,) = crowd.exceeded(phases | {phase: above})
        assert told.startswith(f"{name}, {phase}: {figure} is ")


@pytest.mark.parametrize("name", CROWDS)
def test_each_phase_has_a_column_with_figures_and_ceilings(name: str) -> None:
    crowd = CROWDS[name]
    phases = {phase: at_the_ceiling(ceilings) for phase, ceilings in crowd.ceilings.items()}
    sheet = crowd.sheet(crowd.size, phases)
    assert sheet.columns == ("", *crowd.ceilings)
    first = next(iter(crowd.ceilings.values()))
    assert sheet.rows[0][1] == f"{first.requests:,} (≤ {first.requests:,})"
    assert f"<!-- Written by python -m tools.bench.operator.crowds {name} from here -->" in PAGE.read_text()
    with pytest.raises(BenchError, match="did not measure"):
        crowd.sheet(crowd.size, {})
