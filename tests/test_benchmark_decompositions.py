import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import decompositions, spectra
from benchmarks.decomposition_rows import CURVES, DECOMPOSITION_ROWS, OURS, SPECTRA, spectrum_of
from benchmarks.decompositions import decomposition
from benchmarks.gpu.decompositions import cases
from benchmarks.sections import decompositions as section
from lip_fast.bench.cases import Case, Skip

CPU = torch.device("cpu")
SMALL = 60, 80, 8


@pytest.fixture(scope="module")
def case() -> Case:
    return decomposition("gapped", *SMALL, CPU)


# The weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_descend_from_ten(name: str) -> None:
    found = spectra.values(name, 100, 8)
    assert found.shape == (100,)
    assert found[0] == 10
    assert bool((found.diff() <= 0).all())
    assert name in spectra.SAYS


def test_a_weight_has_the_spectrum_it_is_asked_for_but_for_its_moves() -> None:
    found = spectra.moved("exponential", *SMALL, CPU)
    wanted = spectra.values("exponential", 60, 8)[:8]
    # Signs of 1e-4 each: 1.6e-3 in spectral norm a step, 21 of them in random directions.
    assert float((found.values - wanted).abs().max()) < 1.6e-3 * 21**0.5


def test_the_optimum_is_what_the_full_decomposition_says() -> None:
    M = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    S = torch.linalg.svdvals(M.double())
    for weight in (M, M.mT):
        best, values = spectra.optimum(weight, 7)
        assert best == pytest.approx(float(S[7:].norm()), rel=1e-12)
        assert torch.allclose(values, S[:7], rtol=1e-12)


def test_the_basis_is_one_step_behind() -> None:
    found = spectra.moved("gapped", *SMALL, CPU)
    Vh = torch.linalg.svd(found.M.double())[2][:8]
    away = float((found.basis.double() - Vh.mT @ (Vh @ found.basis.double())).norm())
    # Exact it would be within rounding, 1e-6; of an unrelated weight it would be 2.7.
    assert 1e-5 < away < 1e-2


# The case ------------------------------------------------------------------------------------------------


def test_every_point_has_a_time_and_two_errors(case: Case) -> None:
    names = [point for curve in CURVES for point in curve.points]
    assert [variant.name for variant in case.variants] == names
    assert case.variants[0].name == OURS
    assert set(DECOMPOSITION_ROWS[0].peers) == set(names) - {OURS}
    assert not case.skipped
    for errors in (case.facts["excess"], case.facts["values"]):
        assert set(errors) == set(names)
        assert all(error >= 0 for error in errors.values())


def test_more_iterations_are_more_exact(case: Case) -> None:
    excess = case.facts["excess"]
    for name, option in (("ours cold", "n_iter"), ("svd_lowrank", "niter"), ("scikit-learn", "n_iter")):
        assert excess[f"{name} {option}=0"] > 10 * excess[f"{name} {option}=2"]
    for name in (
        "linalg.svd",
        "arpack tol=0",
        "propack tol=0",
        "lobpcg niter=10",
        "lobpcg warm niter=5",
        OURS,
    ):
        assert excess[name] < 1e-6, name


def test_all_checks_are_made_and_pass(case: Case) -> None:
    assert [gate.name for gate in case.gates] == list(DECOMPOSITION_ROWS[0].gates)
    assert all(gate.passed for gate in case.gates)


def test_a_stale_answer_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    real = decompositions._warm

    def stale(problem: spectra.Moved, k: int, n_iter: float | None) -> decompositions.Triplets:
        S = torch.linalg.vector_norm(problem.M @ problem.basis, dim=0)
        return (problem.M @ problem.basis) / S, S, problem.basis.mT

    monkeypatch.setattr(decompositions, "_warm", stale)
    monkeypatch.setitem(decompositions._METHODS, OURS, stale)
    gates = {gate.name: gate.passed for gate in decomposition("gapped", *SMALL, CPU).gates}
    assert not gates["step"]
    monkeypatch.setattr(decompositions, "_warm", real)


def test_what_a_peer_raises_is_the_reason_it_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("did not converge")

    monkeypatch.setitem(decompositions._METHODS, "propack", broken)
    found = decomposition("gapped", *SMALL, CPU)
    assert found.skipped == {f"propack tol={tol}": "RuntimeError: did not converge" for tol in ("0.1", "0")}
    assert "propack tol=0" not in found.facts["excess"]
    monkeypatch.setitem(decompositions._METHODS, "ours cold", broken)
    with pytest.raises(RuntimeError, match="did not converge"):
        decomposition("gapped", *SMALL, CPU)


def test_methods_left_out_are_named() -> None:
    chosen = [curve for curve in CURVES if curve.name in (OURS, "ours cold")]
    found = decomposition("slow", *SMALL, CPU, curves=chosen, left_out="too large")
    assert found.skipped["svd_lowrank niter=2"] == "too large"
    assert [gate.name for gate in found.gates] == ["distance", "step"]
    assert len(found.variants) == 7


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    for variant in decomposition("gapped", *SMALL, CPU).variants:
        variant.run()
    assert torch.equal(torch.get_rng_state(), before)


def test_dry_rows_of_a_gpu() -> None:
    rows = dict(cases(CPU, True))
    assert len(rows) == 4
    try:
        found = rows["decomposition power-law 120x40"]()
    except Skip as reason:
        pytest.skip(str(reason))
    assert all(gate.passed for gate in found.gates)
    assert found.skipped["linalg.svd"] == "not on a weight of this size"


# The report ----------------------------------------------------------------------------------------------


def result(*, without: str = "") -> Any:
    entries = []
    for row in DECOMPOSITION_ROWS:
        excess = {point: 1e-3 for point in (OURS, *row.peers)}
        excess |= {OURS: 1e-6, "svd_lowrank niter=4": 1e-7, "lobpcg niter=5": 1e-6, "linalg.svd": 1e-12}
        peers = {name: 2e4 for name in row.peers if name != without}
        peers["linalg.svd"] = 5e5
        facts = {"excess": excess, "values": dict.fromkeys(excess, 2e-5)}
        facts, floors = json.loads(json.dumps(facts)), {"copy": 5e2, "arithmetic": 1e3}
        entries.append(SimpleNamespace(row=row, ours=5e3, peers=peers, facts=facts, floors=floors))
    return SimpleNamespace(of=lambda kind: (entry for entry in entries if entry.row.kind == kind))


def lines(text: str, first: str) -> list[list[str]]:
    found = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_a_peer_counts_where_it_is_as_good_as_ours() -> None:
    equal, usual = lines(section.details(result()), "plateaus")
    # ours, ours cold, lobpcg, lobpcg warm, svd_lowrank, scikit-learn, arpack, propack, linalg.svd
    assert equal[1:] == ["5.00 ms; 1e-06", "1.00 ms, 5x", "-", "4.0x", "-", "4.0x", "-", "-", "-", "100.0x"]
    assert usual[1] == "5.00 ms; 1e-06"
    assert usual[5] == "20 ms; 1e-03"
    assert usual[-1] == "500 ms; < 1e-7"


def test_a_point_that_was_not_measured_is_said() -> None:
    equal, usual = lines(section.details(result(without="svd_lowrank niter=2")), "slow")
    assert usual[5] == "n/a"
    assert equal[6] == "4.0x"


def test_details_have_every_setting() -> None:
    text = section.details(result())
    for curve in CURVES:
        for name in curve.points:
            assert lines(text, f"{name} |"), name
    assert lines(text, "arpack tol=0 |")[0][1] == "20 ms; 1e-03; 2e-05"


def test_the_figure_has_a_panel_for_each_spectrum() -> None:
    pytest.importorskip("matplotlib")
    figure = section.figure(result(without="lobpcg niter=2"))
    assert figure is not None
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == [spectrum_of(row) for row in DECOMPOSITION_ROWS]
    assert all(len(axis.lines) == len(CURVES) for axis in shown)
    lobpcg = shown[0].lines[[curve.name for curve in CURVES].index("lobpcg")]
    assert list(lobpcg.get_xdata()) == [20.0, 20.0]
    assert min(min(line.get_ydata()) for line in shown[0].lines) == section.CLIP


def test_nothing_measured_is_nothing_said() -> None:
    empty: Any = SimpleNamespace(of=lambda kind: iter(()))
    assert section.summary(empty) == section.details(empty) == ""
    assert section.figure(empty) is None
