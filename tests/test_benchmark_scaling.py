import math
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import fresh_process, peak_memory
from benchmarks.rows import row
from benchmarks.scaling import fit, upper_half
from benchmarks.scaling_rows import SCALING_ROWS, VARIABLES
from benchmarks.sections import scaling as section
from lip_fast.bench import problems
from lip_fast.bench.one_shot import exact_lip


def test_the_exponent_of_a_power_law_is_exact() -> None:
    xs = [1.0, 3.0, 10.0, 40.0]
    found = fit(xs, [5 * x**1.7 for x in xs])
    assert found.slope == pytest.approx(1.7)
    assert found.error == pytest.approx(0, abs=1e-6)
    assert not found.flat


def test_the_standard_error_is_that_of_least_squares() -> None:
    # Logarithms 0, 1, 2 and 0, 2, 2: slope 1, residuals -1/3, 2/3, -1/3, one degree of freedom.
    found = fit([1, math.e, math.e**2], [1, math.e**2, math.e**2])
    assert found.slope == pytest.approx(1)
    assert found.error == pytest.approx((6 / 9 / 1 / 2) ** 0.5)
    assert str(found) == "1.00 ± 0.58"


@pytest.mark.parametrize(
    ("slope", "noise", "flat"), [(0.0, 0.0, True), (0.05, 0.0, True), (0.3, 0.0, False), (0.0, 1.0, False)]
)
def test_flat_is_what_hardly_grows(slope: float, noise: float, flat: bool) -> None:
    xs = [1.0, 10.0, 100.0, 1000.0]
    ys = [x**slope * math.exp(noise * (-1) ** i) for i, x in enumerate(xs)]
    assert fit(xs, ys).flat is flat


def test_too_few_points_have_no_exponent() -> None:
    with pytest.raises(ValueError, match="expected 3 or more"):
        fit([1, 2], [1, 2])
    with pytest.raises(ValueError, match="expected 3 or more"):
        fit([2, 2, 2], [1, 2, 3])


@pytest.mark.parametrize(("n", "kept"), [(7, 4), (6, 3), (5, 3), (3, 3), (2, 2)])
def test_the_upper_half(n: int, kept: int) -> None:
    assert list(upper_half(range(n))) == list(range(n))[-kept:]


def test_the_grids_share_their_middle_under_two_keys() -> None:
    assert len(SCALING_ROWS) == sum(len(values) for values in VARIABLES.values())
    assert len({row.key for row in SCALING_ROWS}) == len(SCALING_ROWS)
    q, l = row("scaling-q-512"), row("scaling-l-100")
    assert (q.n, q.q, q.l, q.k) == (l.n, l.q, l.l, l.k) == (50_000, 512, 100, 20)
    assert row("scaling-q-64").k == 12


def test_rounds_end_at_the_limit_but_there_are_three(monkeypatch: pytest.MonkeyPatch) -> None:
    size = row("scaling-n-1000")
    assert {len(times) for times in fresh_process._measure(size.key, 4, math.inf).values()} == {4}
    found = fresh_process._measure(size.key, 9, 0.0)
    assert set(found) == {"ours", "reference"}
    assert {len(times) for times in found.values()} == {fresh_process.LEAST_ROUNDS}


@pytest.mark.process
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the mark cannot be set back")
def test_both_peaks_from_one_process() -> None:
    peaks = peak_memory.extra_peaks(row("scaling-n-10000"))
    # Labels of 8 bytes and of 4, n of them a class; and what was left of one call does not serve the next.
    assert peaks["reference"] > 10_000 * 100 * 8
    assert 0 < peaks["ours"] < peaks["reference"] / 2


# The report ----------------------------------------------------------------------------------------------


def result(*, least: int = 0) -> Any:
    """Ours takes n q^0.5 l µs and 4 MB; the reference three times that, and 100 n bytes."""
    entries = [
        SimpleNamespace(
            floors={"copy": 1e3},
            row=row,
            ours=float(row.n * row.q**0.5 * row.l),
            peers={"reference": 3.0 * row.n * row.q**0.5 * row.l},
            memory={"ours": 4_000_000, "reference": 100 * row.n},
            error=1e-7,
            bound=1e-5,
        )
        for row in SCALING_ROWS
        if row.n * row.q * row.l >= least
    ]
    return SimpleNamespace(of=lambda kind: (entry for entry in entries if entry.row.kind == kind))


def cells(text: str, first: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_summary_shows_exponents_and_the_largest_problem() -> None:
    text = section.summary(result())
    n = cells(text, "samples n")
    assert n[1:5] == ["1.00 ± 0.00", "1.00 ± 0.00", "0.00 ± 0.00", "1.00 ± 0.00"]
    assert n[5] == "1,000,000"
    assert n[7:] == ["3.00x", "4.0 MB, 100.0 MB", "0.040x"]
    assert cells(text, "features q")[1:5] == ["0.50 ± 0.00", "0.50 ± 0.00", "0.00 ± 0.00", "0.00 ± 0.00"]
    assert "Our extra memory does not grow with n or q or l." in text


def test_points_that_are_missing_leave_no_exponent() -> None:
    text = section.summary(result(least=50_000 * 512 * 100))
    assert cells(text, "classes l")[1:5] == ["1.00 ± 0.00", "1.00 ± 0.00", "0.00 ± 0.00", "0.00 ± 0.00"]
    text = section.summary(result(least=50_000 * 1024 * 100))
    assert cells(text, "features q")[1:5] == ["n/a"] * 4


def test_details_have_every_point() -> None:
    text = section.details(result())
    for variable, values in VARIABLES.items():
        for value in values:
            assert cells(text, f"{variable} = {value:,}")[-1] == "1e-07 (≤ 1e-05)"


def test_the_figure_has_time_above_and_memory_below() -> None:
    pytest.importorskip("matplotlib")
    figure = section.figure(result())
    assert figure is not None
    assert len(figure.axes) == 6
    labels = [[line.get_label() for line in axis.lines] for axis in figure.axes]
    assert labels[1] == ["ours: $q^{0.50}$", "reference: $q^{0.50}$"]
    assert labels[3] == ["ours: $n^{0.00}$", "reference: $n^{1.00}$"]
    assert list(figure.axes[3].lines[0].get_ydata()) == [4.0] * 7


def test_nothing_measured_is_nothing_said() -> None:
    empty: Any = SimpleNamespace(of=lambda kind: iter(()))
    assert section.summary(empty) == section.details(empty) == ""
    assert section.figure(empty) is None


def test_many_samples_are_summed_in_blocks_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, k = problems.one_shot(replace(row("scaling-l-10"), n=333, q=24)), 2
    whole = exact_lip(problem, k)
    assert float((whole - problem.W).norm()) > 1e-3 * float(whole.norm())
    monkeypatch.setattr("lip_fast.bench.one_shot.BLOCK", 100)
    assert float((exact_lip(problem, k) - whole).norm()) < 1e-12 * float(whole.norm())
