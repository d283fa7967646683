import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from torch import nn

from lip_fast.cli.errors import UserError
from lip_fast.harness.data.rows import Rows
from lip_fast.harness.models import Linear
from lip_fast.harness.seeding import initialisation
from lip_fast.harness.studies.results import COMPARISONS, CleanNetwork, Measured, Study
from lip_fast.harness.studies.subspaces import (
    Ridge,
    RidgePair,
    chance_similarity,
    directions,
    label_matrix,
    largest_gap,
    residual,
    similarity,
    turns,
)
from lip_fast.harness.studies.tables import rank_table, similarity_table, turn_table


def orthonormal(d: int, r: int, generator: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(generator.standard_normal((d, r)))[0]


def pair_of(W: np.ndarray, W_noisy: np.ndarray) -> RidgePair:
    change = float(np.linalg.norm(W_noisy - W, 2))
    return RidgePair(W, W_noisy, change, 2 * change)


# --- phi -------------------------------------------------------------------------------------------------


def test_phi_of_the_same_directions_is_one() -> None:
    V = orthonormal(7, 4, np.random.default_rng(0))
    np.testing.assert_allclose(similarity(V, V), 1)
    np.testing.assert_allclose(residual(similarity(V, V)), 1)


def test_phi_of_orthogonal_subspaces_is_zero() -> None:
    Q = orthonormal(8, 8, np.random.default_rng(0))
    np.testing.assert_allclose(similarity(Q[:, :3], Q[:, 3:6]), 0, atol=1e-15)


def test_phi_by_hand() -> None:
    # The second has its two directions exchanged.
    V = np.eye(3)[:, :2]
    np.testing.assert_array_equal(similarity(V, V[:, ::-1]), [[0, 1], [1, 1]])
    # Turned by 60 degrees about the first axis.
    turned = np.array([[1, 0], [0, 0.5], [0, np.sqrt(0.75)]])
    np.testing.assert_allclose(similarity(V, turned), [[1, 1], [1, (1 + 0.25) / 2]])


def test_phi_is_the_papers_formula_for_any_i_and_j() -> None:
    generator = np.random.default_rng(1)
    V, other = orthonormal(9, 5, generator), orthonormal(9, 4, generator)
    phi = similarity(V, other)
    assert phi.shape == (5, 4)
    for i in range(1, 6):
        for j in range(1, 5):
            expected = np.linalg.norm(V[:, :i].T @ other[:, :j]) ** 2 / min(i, j)
            assert phi[i - 1, j - 1] == pytest.approx(expected)
    np.testing.assert_allclose(similarity(other, V), phi.T)
    assert ((phi >= 0) & (phi <= 1 + 1e-12)).all()


def test_phi_does_not_depend_on_signs_or_on_the_basis_of_the_whole_subspace() -> None:
    generator = np.random.default_rng(2)
    V, other = orthonormal(9, 4, generator), orthonormal(9, 4, generator)
    np.testing.assert_allclose(similarity(V, -other), similarity(V, other))
    rotated = other @ orthonormal(4, 4, generator)
    assert similarity(V, rotated)[3, 3] == pytest.approx(similarity(V, other)[3, 3])


@pytest.mark.parametrize(("i", "j"), [(1, 1), (2, 5), (4, 3)])
def test_phi_of_random_subspaces_is_what_chance_gives(i: int, j: int) -> None:
    generator = np.random.default_rng(3)
    drawn = [
        similarity(orthonormal(12, 5, generator), orthonormal(12, 5, generator))[i - 1, j - 1]
        for _ in range(2000)
    ]
    assert chance_similarity(i, j, 12) == max(i, j) / 12
    # Four standard errors of this mean.
    assert np.mean(drawn) == pytest.approx(max(i, j) / 12, abs=4 * np.std(drawn) / np.sqrt(len(drawn)))


def test_residual_is_phi_of_the_last_directions() -> None:
    generator = np.random.default_rng(4)
    V, other = orthonormal(9, 5, generator), orthonormal(9, 5, generator)
    left = residual(similarity(V, other))
    assert left.shape == (4,)
    for k in range(1, 5):
        expected = np.linalg.norm(V[:, k:].T @ other[:, k:]) ** 2 / (5 - k)
        assert left[k - 1] == pytest.approx(expected)


def test_where_directions_fill_the_space_the_residual_follows_from_the_principal_subspace() -> None:
    generator = np.random.default_rng(5)
    phi = similarity(orthonormal(6, 6, generator), orthonormal(6, 6, generator))
    for k in range(1, 6):
        assert (6 - k) * (1 - residual(phi)[k - 1]) == pytest.approx(k * (1 - phi[k - 1, k - 1]))


# --- ridge heads -----------------------------------------------------------------------------------------


def test_labels_as_matrices() -> None:
    np.testing.assert_array_equal(label_matrix(np.array([2, 0]), 3), [[0, 0, 1], [1, 0, 0]])
    candidates = np.array([[1, 1, 0]], dtype=np.uint8)
    assert label_matrix(candidates, 3).dtype == np.float64
    np.testing.assert_array_equal(label_matrix(candidates, 3), [[1, 1, 0]])


def test_ridge_weight_solves_the_centred_problem() -> None:
    generator = np.random.default_rng(0)
    X, Y = generator.standard_normal((30, 4)) + 3, generator.standard_normal((30, 3))
    ridge = Ridge(X, 0.5)
    centred = X - X.mean(0)
    G = centred.T @ centred
    assert ridge.penalty == pytest.approx(0.5 * np.trace(G) / 4)
    expected = np.linalg.solve(G + ridge.penalty * np.eye(4), centred.T @ Y)
    np.testing.assert_allclose(ridge.weight(Y), expected)
    np.testing.assert_allclose(Ridge(X + 5, 0.5).weight(Y), expected)


def test_what_all_labels_have_in_common_is_no_direction() -> None:
    generator = np.random.default_rng(0)
    X = np.abs(generator.standard_normal((200, 12)))
    W = Ridge(X, 1e-2).weight(label_matrix(generator.integers(0, 5, 200), 5))
    np.testing.assert_allclose(W.sum(1), 0, atol=1e-12)
    assert directions(W) == 4


def test_constant_features_are_refused() -> None:
    with pytest.raises(ValueError, match="not all constant"):
        Ridge(np.ones((5, 3)), 1e-2)


def test_wrong_entries_are_the_numerator_of_the_theorem() -> None:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((40, 6))
    labels = generator.integers(0, 4, 40)
    noisy = labels.copy()
    noisy[:10] = (labels[:10] + 1) % 4
    ridge, Y, Y_noisy = Ridge(X, 0.1), label_matrix(labels, 4), label_matrix(noisy, 4)
    pair = ridge.pair(Y, Y_noisy)
    n, l, p = 40, 4, (Y != Y_noisy).mean()
    assert n * l * p == 20  # two wrong entries in each of ten rows
    centred = X - X.mean(0)
    least = np.linalg.eigvalsh(centred.T @ centred)[0]
    expected = np.linalg.norm(centred, 2) * np.sqrt(n * l * p) / (least + ridge.penalty)
    assert pair.change_bound == pytest.approx(expected)
    np.testing.assert_allclose(pair.W_noisy, ridge.weight(Y_noisy))
    assert pair.change == pytest.approx(np.linalg.norm(ridge.weight(Y_noisy) - ridge.weight(Y), 2))


# --- angles and bounds -----------------------------------------------------------------------------------


def test_a_turn_by_hand() -> None:
    # One direction of features turns by 30 degrees, nothing else: s = 3, 1.
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    W = np.array([[3.0, 0], [0, 1], [0, 0]])
    W_noisy = np.array([[3 * c, 0], [0, 1], [3 * s, 0]])
    (turn,) = turns(pair_of(W, W_noisy))
    assert turn.k == 1
    assert turn.features == pytest.approx(0.5)
    assert turn.classes == pytest.approx(0, abs=1e-12)
    assert turn.gap == pytest.approx(3 - 1)
    # A chord of 30 degrees at radius 3.
    assert turn.bound == pytest.approx(6 * np.sin(np.pi / 12) / 2)
    assert turn.theorem == pytest.approx(2 * turn.bound)


def test_the_largest_of_several_angles_is_measured() -> None:
    # Of the first two directions of features one turns by 30 degrees, the other stays.
    W, W_noisy = np.zeros((4, 3)), np.zeros((4, 3))
    W[:3] = np.diag([4.0, 3, 1])
    W_noisy[:3] = np.diag([4, 3 * np.cos(np.pi / 6), 1])
    W_noisy[3, 1] = 3 * np.sin(np.pi / 6)
    first, second = turns(pair_of(W, W_noisy))
    assert first.features == pytest.approx(0, abs=1e-7)
    assert second.features == pytest.approx(0.5)
    second_classes = turns(pair_of(W.T, W_noisy.T))[1].classes
    assert second_classes == pytest.approx(0.5)


def test_the_gap_is_between_the_kept_values_of_clean_and_the_others_of_wrong_labels() -> None:
    W, W_noisy = np.diag([5.0, 2, 1]), np.diag([6.0, 4, 3])
    assert [turn.gap for turn in turns(pair_of(W, W_noisy))] == pytest.approx([5 - 4, 2 - 3])
    assert [turn.bound is None for turn in turns(pair_of(W, W_noisy))] == [False, True]
    assert [turn.theorem is None for turn in turns(pair_of(W, W_noisy))] == [False, True]


@pytest.mark.parametrize("seed", range(50))
def test_bounds_hold(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n, q, l = generator.integers(20, 80), generator.integers(3, 12), generator.integers(3, 8)
    X = generator.standard_normal((n, q)) * generator.uniform(0.1, 3, q) + generator.standard_normal(q)
    labels = generator.integers(0, l, n)
    noisy = np.where(generator.random(n) < generator.choice([0.02, 0.1, 0.4]), (labels + 1) % l, labels)
    pair = Ridge(X, 10.0 ** generator.integers(-3, 2)).pair(label_matrix(labels, l), label_matrix(noisy, l))
    assert pair.change <= pair.change_bound
    for turn in turns(pair):
        if turn.bound is not None:
            assert max(turn.features, turn.classes) <= turn.bound * (1 + 1e-9) + 1e-7
            assert turn.bound <= turn.theorem * (1 + 1e-9)


def test_the_bound_from_the_labels_is_nearly_reached() -> None:
    # A small D that sends the first direction straight to an empty one; half of the bound would not hold.
    W = np.zeros((3, 2))
    W[0, 0], W[1, 1] = 1, 1e-3
    W_noisy = W.copy()
    W_noisy[2, 0] = 1e-2
    (turn,) = turns(pair_of(W, W_noisy))
    assert 0.99 * turn.bound < turn.features < turn.bound


def test_the_bound_of_the_theorem_is_nearly_reached() -> None:
    # One row has all the weight of its feature, the other features have as much: sigma_max ||E|| is attained
    # but for what centring takes and for E's two entries.
    X = np.vstack([np.eye(3), -np.eye(3)])
    labels, noisy = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 2, 1, 1, 2])
    pair = Ridge(X, 1e-6).pair(label_matrix(labels, 3), label_matrix(noisy, 3))
    # E has one row: ||X^T E|| = ||E||_F, beside sigma_max(X) = sqrt(2).
    assert pair.change == pytest.approx(pair.change_bound / np.sqrt(2))


def test_largest_gap_is_relative() -> None:
    assert largest_gap(np.array([10.0, 8, 1, 0.5])) == 2
    assert largest_gap(np.array([10.0, 8, 4, 0.1])) == 3
    assert largest_gap(np.array([2.0, 1])) == 1


# --- what it comes to ------------------------------------------------------------------------------------


TEST = Rows(torch.eye(6)[:3], torch.tensor([0, 1, 1]))


def rows(X: np.ndarray, labels: np.ndarray) -> Rows:
    return Rows(torch.from_numpy(X), torch.from_numpy(labels))


def linear(classes: int) -> Linear:
    with initialisation(0):
        return Linear(6, classes)


def problem() -> tuple[Linear, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    X = generator.standard_normal((60, 6)).astype(np.float32)
    labels = generator.integers(0, 4, 60)
    model = linear(4)
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(4, 6))
        model.head.bias.zero_()
    return model, X, labels


def test_a_network_with_itself_is_the_same() -> None:
    model, X, labels = problem()
    clean = CleanNetwork.of(model, rows(X, labels), 7, 1e-2, {0.0: labels})
    assert (clean.W.shape, clean.directions) == ((6, 4), 3)
    measured = clean.measure(model, TEST, 0.0)
    assert (measured.seed, measured.rate, measured.wrong_rows, measured.wrong_entries) == (7, 0.0, 0.0, 0.0)
    assert measured.test_accuracy == pytest.approx(2 / 3)
    assert measured.head_spectrum == pytest.approx(np.ones(4))
    assert list(measured.similarity) == list(COMPARISONS)
    for name, phi in measured.similarity.items():
        assert phi.shape == ((3, 3) if name.startswith("ridge") else (4, 4))
        np.testing.assert_allclose(phi, 1)
    assert [turn.k for turn in measured.turns] == [1, 2]
    for turn in measured.turns:
        assert max(turn.features, turn.classes) == pytest.approx(0, abs=1e-7)
        assert turn.bound == turn.theorem == 0


def test_features_and_classes_are_not_exchanged() -> None:
    model, X, labels = problem()
    other = linear(4)
    with torch.no_grad():  # the same classes on other features, and distinct singular values for both
        model.head.weight.copy_(torch.diag(torch.tensor([4.0, 3, 2, 1])) @ torch.eye(4, 6))
        other.head.weight.copy_(torch.diag(torch.tensor([4.0, 3, 2, 1])) @ torch.eye(4, 6).flip(1))
    clean = CleanNetwork.of(model, rows(X, labels), 0, 1e-2, {0.5: labels})
    measured = clean.measure(other, TEST, 0.5)
    np.testing.assert_allclose(measured.similarity["head_classes"], 1)
    assert measured.similarity["head_features"][1, 1] == pytest.approx(0)
    assert measured.similarity["head_features"][3, 3] == pytest.approx(0.5)


def test_the_ridge_head_of_wrong_labels_is_turned_from_that_of_clean_labels() -> None:
    model, X, labels = problem()
    wrong = np.where(np.arange(60) < 30, (labels + 1) % 4, labels)
    measured = CleanNetwork.of(model, rows(X, labels), 0, 1e-2, {0.5: wrong}).measure(model, TEST, 0.5)
    ridge = Ridge(X.astype(np.float64), 1e-2)
    W, W_noisy = (ridge.weight(label_matrix(given, 4)) for given in (labels, wrong))
    s, s_noisy = (np.linalg.svd(weight, compute_uv=False) for weight in (W, W_noisy))
    np.testing.assert_allclose(measured.ridge_spectrum, s_noisy[:3])
    assert [turn.gap for turn in measured.turns] == pytest.approx([s[0] - s_noisy[1], s[1] - s_noisy[2]])


def test_wrong_candidates_are_counted() -> None:
    model, X, labels = problem()
    clean_sets = label_matrix(labels, 4).astype(np.float32)
    sets = clean_sets.copy()
    sets[:15] = 1  # three wrong candidates each
    clean = CleanNetwork.of(model, rows(X, clean_sets), 0, 1e-2, {0.3: sets})
    measured = clean.measure(model, TEST, 0.3)
    assert measured.wrong_rows == 0.25
    assert measured.wrong_entries == pytest.approx(0.25 * 0.75)


def test_two_classes_have_nothing_to_compare() -> None:
    _, X, labels = problem()
    with pytest.raises(UserError, match=r"at least two directions .* got 1 with 6 features and 2 classes"):
        CleanNetwork.of(linear(2), rows(X, labels % 2), 0, 1e-2, {0.0: labels % 2})


def test_dead_features_are_told() -> None:
    model, X, labels = problem()
    with pytest.raises(
        UserError, match="not all constant, of the network trained on clean labels with seed 3"
    ):
        CleanNetwork.of(model, rows(0 * X, labels), 3, 1e-2, {0.0: labels})


def test_what_is_kept_of_a_network_comes_out_of_a_file_with_every_bit() -> None:
    model, X, labels = problem()
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    wrong = {0.0: labels, 0.5: np.where(np.arange(60) < 30, (labels + 1) % 4, labels)}
    clean = CleanNetwork.of(model, rows(X, labels), 3, 1e-2, wrong)
    file = io.BytesIO()
    torch.save(clean.state_dict(), file)
    file.seek(0)
    restored = CleanNetwork.from_state(torch.load(file, weights_only=True))
    assert (restored.penalty, restored.directions) == (clean.penalty, 3)
    np.testing.assert_array_equal(restored.W, clean.W)
    other = linear(4)
    measured = clean.measure(other, TEST, 0.5)
    assert measured.turns[0].features > 0.01
    assert restored.measure(other, TEST, 0.5).as_plain() == measured.as_plain()
    again = Measured.from_plain(json.loads(json.dumps(measured.as_plain())))
    assert again.as_plain() == measured.as_plain()
    np.testing.assert_array_equal(again.similarity["head_classes"], measured.similarity["head_classes"])
    np.testing.assert_array_equal(again.ridge_spectrum, measured.ridge_spectrum)
    assert again.turns == measured.turns


def test_weights_that_are_not_finite_are_told() -> None:
    model, X, labels = problem()
    clean = CleanNetwork.of(model, rows(X, labels), 3, 1e-2, {0.2: labels})
    nn.init.constant_(model.head.weight, torch.inf)
    with pytest.raises(UserError, match="diverged in its last step, seed 3"):
        clean.measure(model, TEST, 0.2)


def small_study(rank: int | None = None) -> Study:
    measured: list[Measured] = []
    for seed in (0, 1):
        model, X, labels = problem()
        wrong = {
            rate: np.where(np.arange(60) < 60 * rate, (labels + 1 + seed) % 4, labels) for rate in (0.0, 0.5)
        }
        clean = CleanNetwork.of(model, rows(X, labels), seed, 1e-2, wrong)
        measured.extend(clean.measure(model, TEST, rate) for rate in wrong)
    return Study(measured, (6, 4), rank)


def test_a_study_takes_means_over_seeds() -> None:
    study = small_study()
    assert study.rates == [0.0, 0.5]
    assert study.directions == 3
    first, second = study.of(0.5)
    assert (first.seed, second.seed) == (0, 1)
    name = "ridge_features"
    expected = (first.similarity[name] + second.similarity[name]) / 2
    np.testing.assert_allclose(study.phi(0.5, name), expected)
    assert study.principal_and_residual(0.5, name, 2) == pytest.approx(
        (expected[1, 1], residual(expected)[1])
    )
    sines = [one.turns[1].features for one in (first, second)]
    assert sines[0] != sines[1]
    assert study.turn(0.5, 2, "features") == pytest.approx(np.mean(sines))
    assert study.chance(name, 1) == pytest.approx((1 / 6, 2 / 6))
    assert study.chance("head_classes", 1) == pytest.approx((1 / 4, 3 / 4))


def test_rank_is_where_the_clean_ridge_spectrum_falls_or_what_is_asked_for() -> None:
    study = small_study()
    clean = np.mean([one.ridge_spectrum for one in study.of(0.0)], axis=0)
    assert study.rank == largest_gap(clean)
    other = 3 - study.rank
    assert small_study(other).rank == other


def test_a_bound_is_a_bound_only_where_every_seed_has_one() -> None:
    study = small_study()
    first, second = study.of(0.5)
    assert study.turn(0.5, 1, "bound") == pytest.approx((first.turns[0].bound + second.turns[0].bound) / 2)
    second.turns[0] = dataclasses.replace(second.turns[0], bound=None)
    assert study.turn(0.5, 1, "bound") is None
    assert study.turn(0.5, 2, "bound") is not None


def test_tables_have_a_row_for_each_rate() -> None:
    study = small_study(1)
    lines = similarity_table(study).splitlines()
    assert len(lines) == 2 + 2 + 1
    assert {line.count("|") for line in lines} == {8}
    assert lines[2].split("|")[1:4] == [" 0         ", " 0.0%         ", " 66.7 ± 0.0    "]
    assert lines[3].split("|")[2].strip() == "50.0%"
    principal, left = study.principal_and_residual(0.5, "ridge_features", 1)
    assert lines[3].split("|")[4].strip() == f"{principal:.3f} / {left:.3f}"
    assert lines[4].split("|")[4].strip() == "0.167 / 0.333"
    assert len(rank_table(study, "ridge_features").splitlines()) == 2 + 2
    assert len(turn_table(study, [1, 2]).splitlines()) == 2 + 2


@pytest.mark.parametrize(
    ("bound", "expected"),
    [(None, "-"), (0.5, "0.500"), (1.0, "1 (vacuous)"), (3.14, "3.1 (vacuous)"), (1234.5, "1234 (vacuous)")],
)
def test_a_bound_that_says_nothing_is_marked(bound: float | None, expected: str, monkeypatch) -> None:
    study = small_study(1)
    monkeypatch.setattr(study, "turn", lambda rate, k, name: bound if name == "theorem" else 2.0)
    cells = [cell.strip() for cell in turn_table(study, [1]).splitlines()[2].split("|")[1:-1]]
    assert cells == ["0.5", "1", "2.000", "2.000", "2.000", "2 (vacuous)", expected]
