"""The training loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_deploy.schedule import PREDICTIONS, NoiseSchedule
from ddpm_deploy.train.loss import Objective, loss_weights, target

SCHEDULES = {
    "linear": NoiseSchedule.linear(40),
    "flow": NoiseSchedule.from_alpha_sigma(np.linspace(0.99, 0.01, 40), np.linspace(0.01, 0.99, 40)),
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_target_is_the_prediction_that_means_the_clean_image(kind: str) -> None:
    """Checked on the variance-preserving schedule, where `v` has its published meaning."""
    schedule = SCHEDULES["linear"]
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 5, 3))
    t = np.array([0, 7, 20, 38, 39])
    alpha, sigma = schedule.alpha[t, None], schedule.sigma[t, None]
    actual = target(kind, *(torch.tensor(value) for value in (x0, eps, alpha, sigma)))
    expected = schedule.from_x0(schedule.add_noise(x0, eps, t), x0, t, kind)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_a_network_that_knows_the_answer_has_no_loss(name: str, kind: str) -> None:
    schedule = SCHEDULES[name]
    x0, eps = torch.randn(2, 6, 3)
    t = torch.tensor([0, 5, 11, 20, 30, 39])
    alpha, sigma = (torch.tensor(table, dtype=torch.float32)[t, None] for table in (schedule.alpha, schedule.sigma))

    def oracle(x: Tensor, time: Tensor) -> Tensor:
        torch.testing.assert_close(x, alpha * x0 + sigma * eps)
        assert torch.equal(time, t.float())
        return target(kind, x0, eps, alpha, sigma)

    assert float(Objective(schedule, kind, None, CPU)(oracle, x0, t, eps, {})) == 0


def test_simple_loss_is_the_mean_squared_error_of_eps() -> None:
    eps = torch.randn(4, 2, 3)
    loss = Objective(SCHEDULES["linear"], "eps", None, CPU)(
        lambda x, t: torch.zeros_like(x), torch.randn(4, 2, 3), torch.zeros(4, dtype=torch.int64), eps, {}
    )
    assert float(loss) == pytest.approx(float(eps.square().mean()))


def test_min_snr_weights_are_the_published_ones() -> None:
    """Hang et al. 2023: min(SNR, 5) / SNR for eps, min(SNR, 5) / (SNR + 1) for v, min(SNR, 5) for x0."""
    schedule = SCHEDULES["linear"]
    snr = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    bounded = np.minimum(snr, 5)
    for kind, expected in (("eps", bounded / snr), ("v", bounded / (snr + 1)), ("x0", bounded)):
        np.testing.assert_allclose(loss_weights(schedule, kind, 5.0), expected, rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_min_snr_weighs_the_same_error_of_the_clean_image_the_same_for_every_prediction(name: str) -> None:
    schedule = SCHEDULES[name]
    t, x, error = np.arange(40), np.zeros((40, 1)), np.ones((40, 1))
    weighted = []
    for kind in PREDICTIONS:
        difference = schedule.from_x0(x, x + error, t, kind) - schedule.from_x0(x, x, t, kind)
        weighted.append(loss_weights(schedule, kind, 3.0) * difference[:, 0] ** 2)
    for other in weighted[1:]:
        np.testing.assert_allclose(other, weighted[0], rtol=1e-6)


def test_weights_enter_the_loss_by_timestep() -> None:
    schedule = SCHEDULES["linear"]
    t, eps = torch.tensor([3, 30]), torch.randn(2, 5)
    loss = Objective(schedule, "eps", 5.0, CPU)(lambda x, t: torch.zeros_like(x), torch.zeros(2, 5), t, eps, {})
    weights = torch.tensor(loss_weights(schedule, "eps", 5.0))[t]
    assert float(loss) == pytest.approx(float((weights * eps.square().mean(dim=1)).mean()), rel=1e-6)
