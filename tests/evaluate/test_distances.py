"""Distances against closed forms, scipy, scikit-learn and pytorch-fid."""

from __future__ import annotations

import importlib
import math
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import wasserstein_distance
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from ddpm_deploy.evaluate.frechet import Moments, frechet_distance, moments_distance
from ddpm_deploy.evaluate.jackknife import jackknife_error
from ddpm_deploy.evaluate.kernel import kernel_distance
from ddpm_deploy.evaluate.manifold import nearest, precision_recall
from ddpm_deploy.evaluate.sliced import sliced_distance, wasserstein_1d

RNG = np.random.default_rng(3)


def correlated(n: int, dimensions: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, dimensions)) @ rng.standard_normal((dimensions, dimensions)) + rng.standard_normal(
        dimensions
    )


# -- Fréchet ----------------------------------------------------------------------------------------------------------


def test_frechet_of_known_gaussians_is_the_closed_form():
    """For diagonal covariances `sum (m - m')² + (s - s')²`."""
    m, s, other_m, other_s = RNG.random((4, 6)) + 0.1
    found = moments_distance(Moments(m, np.diag(s**2)), Moments(other_m, np.diag(other_s**2)))
    assert found == pytest.approx(np.sum((m - other_m) ** 2 + (s - other_s) ** 2), rel=1e-9)


def test_frechet_is_what_scipys_matrix_root_gives():
    x, y = correlated(300, 12), correlated(200, 12, seed=1)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_frechet_is_what_pytorch_fid_gives(monkeypatch):
    pytest.importorskip("pytorch_fid", reason="pytorch-fid is not installed; make test brings it")
    for name in ("torchvision", "torchvision.transforms", "torchvision.models"):  # for its network, not for its formula
        monkeypatch.setitem(sys.modules, name, MagicMock())
    fid_score = importlib.import_module("pytorch_fid.fid_score")
    x, y = correlated(300, 8), correlated(250, 8, seed=1)
    arguments = [part for z in (x, y) for part in (z.mean(0), np.cov(z, rowvar=False))]
    assert frechet_distance(x, y) == pytest.approx(fid_score.calculate_frechet_distance(*arguments), rel=1e-8)


def test_frechet_with_fewer_samples_than_dimensions_is_finite_and_zero_to_itself():
    x, y = correlated(5, 20), correlated(7, 20, seed=1)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9 * np.trace(np.cov(x, rowvar=False)))
    assert frechet_distance(x, y) > 1


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="got 1 samples, expected at least 2"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))


# -- kernel -----------------------------------------------------------------------------------------------------------


def test_the_kernel_distance_is_the_unbiased_estimate_with_scikit_learns_kernel():
    x, y = correlated(40, 6), correlated(55, 6, seed=1)
    kernel = {"degree": 3, "gamma": None, "coef0": 1}
    a, b, c = polynomial_kernel(x, **kernel), polynomial_kernel(y, **kernel), polynomial_kernel(x, y, **kernel)
    expected = (a.sum() - np.trace(a)) / (40 * 39) + (b.sum() - np.trace(b)) / (55 * 54) - 2 * c.mean()
    assert kernel_distance(x, y)[0] == pytest.approx(expected, rel=1e-10)


def test_the_kernel_distance_of_equal_distributions_is_zero_on_average_and_its_error_the_spread():
    found = np.array([kernel_distance(*np.random.default_rng(k).standard_normal((2, 60, 4))) for k in range(200)])
    assert abs(found[:, 0].mean()) < 4 * found[:, 0].std() / math.sqrt(200)
    apart = np.array(
        [kernel_distance(r.standard_normal((60, 4)), 0.6 + r.standard_normal((60, 4)))
         for r in map(np.random.default_rng, range(200))]
    )  # fmt: skip
    assert apart[:, 0].mean() > 10 * abs(found[:, 0].mean())
    y = 0.6 + RNG.standard_normal((60, 4))
    fixed = np.array([kernel_distance(np.random.default_rng(k).standard_normal((60, 4)), y) for k in range(200)])
    assert fixed[:, 1].mean() == pytest.approx(fixed[:, 0].std(), rel=0.2)


# -- sliced Wasserstein -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(50, 50), (50, 31), (7, 90)])
def test_the_distance_along_a_line_is_scipys(sizes):
    a, b = RNG.standard_normal(sizes[0]), 1.5 * RNG.standard_normal(sizes[1]) + 0.3
    assert wasserstein_1d(a, b) == pytest.approx(wasserstein_distance(a, b), rel=1e-10)


def test_the_sliced_distance_of_shifted_sets_is_the_mean_length_of_the_shifts_shadow():
    """A shift of length r in D dimensions moves a projection by r |cos|, on average r times a ratio of gammas."""
    x = RNG.standard_normal((200, 3, 2, 2))
    shift = np.zeros((3, 2, 2))
    shift[1, 0, 1] = 5.0
    expected = 5 * math.gamma(6) / (math.sqrt(math.pi) * math.gamma(6.5))
    assert sliced_distance(x, x + shift, directions=20_000) == pytest.approx(expected, rel=0.02)


# -- precision, recall, neighbours ------------------------------------------------------------------------------------


def test_precision_and_recall_count_what_scikit_learns_neighbours_cover():
    real, drawn = correlated(90, 5), correlated(70, 5, seed=1)
    expected = []
    for manifold, points in ((real, drawn), (drawn, real)):
        radii = NearestNeighbors(n_neighbors=4).fit(manifold).kneighbors(manifold)[0][:, -1]
        apart = np.linalg.norm(points[:, None] - manifold, axis=-1)
        expected.append((apart <= radii).any(axis=1).mean())
    assert precision_recall(real, drawn) == pytest.approx(tuple(expected))


def test_half_the_modes_is_precise_and_recalls_half():
    left, right = RNG.standard_normal((2, 400, 3))
    real = np.concatenate([left, right + 100])
    precision, recall = precision_recall(real, RNG.standard_normal((400, 3)))
    assert precision > 0.95
    assert recall == pytest.approx(0.5, abs=0.03)


def test_the_nearest_neighbour_is_scikit_learns():
    samples, known = correlated(30, 4).reshape(30, 2, 2), correlated(2000, 4, seed=1).reshape(2000, 2, 2)
    found = nearest(samples, known)
    index = NearestNeighbors(n_neighbors=1).fit(known.reshape(2000, 4))
    distance, which = index.kneighbors(samples.reshape(30, 4))
    assert found[0] == pytest.approx(distance[:, 0], rel=1e-6)
    assert np.array_equal(found[1], which[:, 0])


# -- errors -----------------------------------------------------------------------------------------------------------


def test_the_jackknife_error_of_a_mean_is_the_textbook_one():
    x = 3 * RNG.standard_normal((500, 1))
    assert jackknife_error(lambda a: float(a.mean()), x, groups=500) == pytest.approx(x.std(ddof=1) / math.sqrt(500))
    assert jackknife_error(lambda a: float(a.mean()), x, groups=50) == pytest.approx(x.std() / math.sqrt(500), rel=0.3)


def test_the_jackknife_error_of_the_frechet_distance_is_its_spread_over_sets():
    y = 1 + RNG.standard_normal((300, 3))

    def sets(count):
        return [np.random.default_rng(seed).standard_normal((300, 3)) for seed in range(count)]

    spread = np.std([frechet_distance(x, y) for x in sets(100)])
    errors = [jackknife_error(lambda x: frechet_distance(x, y), x) for x in sets(20)]
    assert np.mean(errors) == pytest.approx(spread, rel=0.3)
