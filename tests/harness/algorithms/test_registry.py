import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.algorithms.problems import blobs, candidates_of, make_network, make_task, take_step

from lip_fast.cli.errors import UserError
from lip_fast.harness.algorithms import ALGORITHMS, AUTO, Algorithm, resolved

STEPPED = [name for name, algorithm in ALGORITHMS.items() if not algorithm.WHOLE]


def on_blobs(
    name: str, *, candidates: bool | None = None, wrong: float = 0.3
) -> tuple[Algorithm, np.ndarray]:
    """The algorithm on labels that are partly wrong, or on candidate sets, and the clean labels."""
    X, clean, noisy = blobs(wrong=wrong)
    if candidates is None:
        candidates = "indices" not in ALGORITHMS[name].LABELS
    targets: Any = candidates_of(clean) if candidates else noisy
    rows = np.arange(20)
    clean_part = {"clean_rows": rows, "clean_labels": clean[rows]} if ALGORITHMS[name].USES_CLEAN else {}
    return ALGORITHMS[name](make_task(targets, X, **clean_part)), clean


def both_labels(names: list[str]) -> list[tuple[str, bool]]:
    return [
        (name, form == "candidates")
        for name in names
        for form in ("indices", "candidates")
        if form in ALGORITHMS[name].LABELS
    ]


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_says_what_it_is(name: str) -> None:
    algorithm = ALGORITHMS[name]
    text = algorithm.__doc__ or ""
    assert algorithm.__doc__ != Algorithm.__doc__
    assert "Source: " in text
    assert "arXiv:" in text or "doi:" in text
    assert algorithm.LABELS
    assert set(algorithm.LABELS) <= {"indices", "candidates"}
    _, _, options = text.partition("Options:")
    for option, default in algorithm.OPTIONS.items():
        assert f"{option}: " in options
        assert f"{default:g}" in options
    assert bool(options) == bool(algorithm.OPTIONS)


def test_titles_differ() -> None:
    assert len({algorithm.TITLE for algorithm in ALGORITHMS.values()}) == len(ALGORITHMS)


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_has_a_test_file(name: str) -> None:
    path = Path(__file__).with_name(f"test_{name.replace('-', '_')}.py")
    assert f'"{name}"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_options_are_checked(name: str) -> None:
    algorithm = ALGORITHMS[name]
    assert algorithm.checked_options({}) == algorithm.OPTIONS
    if not algorithm.OPTIONS:
        with pytest.raises(UserError, match=f"{algorithm.TITLE} takes no options, got q"):
            algorithm.checked_options({"q": 1.0})
        return
    with pytest.raises(UserError, match=f"unknown option of {algorithm.TITLE} 'qq'"):
        algorithm.checked_options({"qq": 1.0})
    for option in algorithm.OPTIONS:
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(UserError, match=f"expected option {option} of {algorithm.TITLE} .*, got "):
                algorithm.checked_options({option: value})


def test_auto_depends_on_the_labels() -> None:
    assert resolved(AUTO, candidates=False) == "cross-entropy"
    assert resolved(AUTO, candidates=True) == "cc"
    assert resolved("gce", candidates=True) == "gce"


@pytest.mark.parametrize(("name", "candidates"), both_labels(STEPPED))
def test_losses_are_finite_for_logits_of_any_size(name: str, candidates: bool) -> None:
    algorithm, _ = on_blobs(name, candidates=candidates)
    rows = torch.arange(6)
    for size in (1e4, 1e-4):
        logits = (
            size * torch.tensor([1.0, -1.0, 0.5])[torch.arange(18).reshape(6, 3) * 7 % 5 % 3]
        ).requires_grad_()
        for _ in range(2):  # a state that the first call left is to be as good
            loss = algorithm.loss(logits, rows)
            (gradient,) = torch.autograd.grad(loss, logits)
            assert loss.isfinite()
            assert gradient.isfinite().all()


@pytest.mark.parametrize(("name", "candidates"), both_labels(list(ALGORITHMS)))
def test_every_algorithm_learns_what_most_labels_say(name: str, candidates: bool) -> None:
    algorithm, clean = on_blobs(name, candidates=candidates)
    model = make_network()
    random_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    if algorithm.WHOLE:
        algorithm.fit(model)
    else:
        for step in range(150):
            take_step(algorithm, model, torch.arange(step % 3, len(clean), 3), lr=0.3)
    algorithm.end_epoch(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classifier = algorithm.classifier(model)
    with torch.no_grad():
        scores = classifier(model.features(algorithm.task.features))
    assert scores.shape == (len(clean), 3)
    assert (scores.argmax(1).numpy() == clean).mean() > 0.95
    assert isinstance(classifier, torch.nn.Linear) or not algorithm.LINEAR
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random_state[0], torch.get_rng_state())
    np.testing.assert_array_equal(random_state[1], np.random.get_state()[1])


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_scores_leave_the_networks_modes_alone(name: str) -> None:
    algorithm, _ = on_blobs(name)
    model = make_network()
    model.train()
    model.body[0].eval()
    algorithm.classifier(model)
    assert [module.training for module in model.modules()] == [
        m is not model.body[0] for m in model.modules()
    ]


@pytest.mark.parametrize(("name", "candidates"), both_labels(STEPPED))
def test_a_state_continues_to_the_same_bits(name: str, candidates: bool) -> None:
    algorithm, _ = on_blobs(name, candidates=candidates)
    model = make_network()
    batches = [torch.arange(i, 150, 4) for i in (0, 1, 0, 2, 1, 0)]
    for rows in batches[:3]:
        take_step(algorithm, model, rows)
    file = io.BytesIO()
    torch.save({"algorithm": algorithm.state_dict(), "model": model.state_dict()}, file)
    for rows in batches[3:]:
        take_step(algorithm, model, rows)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    again, _ = on_blobs(name, candidates=candidates)
    twin = make_network(seed=1)
    twin.load_state_dict(state["model"])
    again.load_state_dict(state["algorithm"])
    for rows in batches[3:]:
        take_step(again, twin, rows)
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert again.state_dict().keys() == algorithm.state_dict().keys()
    for key, value in again.state_dict().items():
        assert torch.equal(value, algorithm.state_dict()[key])


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_a_state_is_a_copy(name: str) -> None:
    algorithm, _ = on_blobs(name)
    state = algorithm.state_dict()
    kept = {key: value.clone() for key, value in state.items()}
    if not algorithm.WHOLE:
        take_step(algorithm, make_network(), torch.arange(9))
    assert all(torch.equal(kept[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_states_of_others_are_refused(name: str) -> None:
    algorithm, _ = on_blobs(name)
    state = algorithm.state_dict()
    with pytest.raises(ValueError, match="other"):
        algorithm.load_state_dict({"other": torch.zeros(3)})
    for key, value in state.items():
        # One row alone would fit every row.
        for wrong in (1, value.to(torch.float16), value[:-1], value[:1]):
            with pytest.raises((ValueError, RuntimeError)):
                algorithm.load_state_dict({**state, key: wrong})
        with pytest.raises(ValueError, match="expected a state of"):
            algorithm.load_state_dict({})
    algorithm.load_state_dict(state)
