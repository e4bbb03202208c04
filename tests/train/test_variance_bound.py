"""The loss of a learned variance, against formulas written out another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn
from train_toys import SCHEDULE, quick, ring

from ddpm_deploy.model import UNet
from ddpm_deploy.schedule import PREDICTIONS, NoiseSchedule
from ddpm_deploy.train import load_run, train
from ddpm_deploy.train.__main__ import main
from ddpm_deploy.train.bound import VarianceBound, gaussian_kl
from ddpm_deploy.train.loss import Objective

CPU = torch.device("cpu")
LINEAR = NoiseSchedule.linear(40)
T = torch.tensor([0, 1, 2, 20, 39])


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("shift", "q", "p"), [(0.3, -1.0, -0.2), (0.0, 0.5, 0.5), (-2.0, -3.0, 1.0)])
def test_the_divergence_of_two_gaussians_is_the_integral_that_defines_it(shift: float, q: float, p: float) -> None:
    of_q, of_p = norm(shift, np.exp(q / 2)), norm(0, np.exp(p / 2))
    expected, _ = quad(lambda x: of_q.pdf(x) * (of_q.logpdf(x) - of_p.logpdf(x)), -15, 15, limit=200)
    found = gaussian_kl(*(torch.tensor(value, dtype=torch.float64) for value in (shift, q, p)))
    assert float(found) == pytest.approx(expected, abs=1e-7)


def written_out(schedule: NoiseSchedule, x0: Any, x_t: Any, eps: Any, v: Any, t: int) -> float:
    """One term for an eps prediction, from the betas and the posterior's two means, in bits/dim."""
    beta, abar = schedule.betas, schedule.alphas_cumprod
    before = abar[t - 1] if t else 1.0
    posterior = [beta[i] * (1 - (abar[i - 1] if i else 1)) / (1 - abar[i]) for i in range(schedule.T)]
    log_small = np.log(posterior[max(t, 1)])

    def mean(clean: Any) -> Any:
        return (np.sqrt(before) * beta[t] * clean + np.sqrt(1 - beta[t]) * (1 - before) * x_t) / (1 - abar[t])

    f = (v + 1) / 2
    variance = np.exp(f * np.log(beta[t]) + (1 - f) * log_small)
    own = mean((x_t - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t]))
    if t == 0:
        return float(np.mean(-norm(own, np.sqrt(variance)).logpdf(x0)) / np.log(2))
    kl = np.log(np.sqrt(variance) / np.sqrt(posterior[t]))
    kl = kl + (posterior[t] + (mean(x0) - own) ** 2) / (2 * variance) - 0.5
    return float(np.mean(kl) / np.log(2))


def test_each_term_is_the_papers() -> None:
    x0, m, v, noise = (draws(5, 2, 3, seed=i) for i in range(4))
    alpha, sigma = (torch.tensor(table)[T].float().reshape(-1, 1, 1) for table in (LINEAR.alpha, LINEAR.sigma))
    x_t = alpha * x0 + sigma * noise
    found = VarianceBound(LINEAR, "eps", CPU)(x0, x_t, m, v, T)
    parts = [[part[i].double().numpy() for part in (x0, x_t, m, v)] for i in range(5)]
    expected = [written_out(LINEAR, *part, int(t)) for part, t in zip(parts, T, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_the_right_prediction_with_the_posteriors_variance_costs_nothing_after_the_first_step(kind: str) -> None:
    x0, noise = draws(4, 3), draws(4, 3, seed=1)
    t = T[1:]
    alpha, sigma = (torch.tensor(table)[t].float()[:, None] for table in (LINEAR.alpha, LINEAR.sigma))
    x_t = alpha * x0 + sigma * noise
    m = torch.tensor(LINEAR.from_x0(x_t.double().numpy(), x0.double().numpy(), t.numpy(), kind)).float()
    terms = VarianceBound(LINEAR, kind, CPU)(x0, x_t, m, -torch.ones(4, 3), t)
    assert float(terms.abs().max()) < 1e-3


def test_the_probabilities_of_all_levels_add_up_to_one() -> None:
    levels = torch.linspace(-1, 1, 17)[:, None]
    v = draws(1, 1).expand(17, 1)
    mean = torch.full((17, 1), 0.3)
    bound = VarianceBound(LINEAR, "x0", CPU, levels=17, clip=(-1.0, 1.0))
    bits = bound(levels, levels, mean, v, torch.zeros(17, dtype=torch.int64))
    wide = VarianceBound(NoiseSchedule.linear(4, 0.05, 0.3), "x0", CPU, levels=17, clip=(-1.0, 1.0))
    for terms in (bits, wide(levels, levels, mean, v, torch.zeros(17, dtype=torch.int64))):
        assert float((2.0**-terms).sum()) == pytest.approx(1, abs=1e-5)


def test_the_bound_moves_the_variance_and_leaves_the_mean_alone() -> None:
    x0, x_t = draws(5, 2), draws(5, 2, seed=1)
    m, v = draws(5, 2, seed=2).requires_grad_(), draws(5, 2, seed=3).requires_grad_()
    VarianceBound(LINEAR, "eps", CPU)(x0, x_t, m, v, T).sum().backward()
    assert m.grad is None
    assert v.grad is not None
    assert (v.grad != 0).all()


def test_the_hybrid_loss_is_the_simple_one_and_a_share_of_the_bound() -> None:
    x0, eps, output = draws(5, 2), draws(5, 2, seed=1), draws(5, 4, seed=2)
    bound = VarianceBound(LINEAR, "eps", CPU)
    hybrid = Objective(LINEAR, "eps", None, CPU, bound, 0.01)(lambda x, t: output, x0, T, eps, {})
    simple = Objective(LINEAR, "eps", None, CPU)(lambda x, t: output[:, :2], x0, T, eps, {})
    alpha, sigma = (torch.tensor(table)[T].float()[:, None] for table in (LINEAR.alpha, LINEAR.sigma))
    terms = bound(x0, alpha * x0 + sigma * eps, output[:, :2], output[:, 2:], T)
    assert float(hybrid) == pytest.approx(float(simple + 0.01 * 40 * terms.mean()), rel=1e-6)


class TwoOutputs(nn.Module):
    """Predicts eps of a point and its log variance by two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.inner(torch.cat([x, t[:, None] / 50], dim=1))
        return out


def test_training_lowers_the_bound(tmp_path: Path) -> None:
    x0, eps, t = ring(96).repeat(20, 1), draws(1920, 2), torch.arange(1920) % SCHEDULE.T
    bound = VarianceBound(SCHEDULE, "eps", CPU)
    alpha, sigma = (torch.tensor(table)[t].float()[:, None] for table in (SCHEDULE.alpha, SCHEDULE.sigma))
    x_t = alpha * x0 + sigma * eps

    def bits(network: nn.Module) -> float:
        with torch.no_grad():
            m, v = network(x_t, t.float()).chunk(2, dim=1)
            return float(bound(x0, x_t, m, v, t).mean())

    network = TwoOutputs()
    before = bits(network)
    config = quick(steps=300, batch_size=128, ema_decay=0.9, checkpoint_every=300)
    run = train(network, ring(96), SCHEDULE, out=tmp_path, config=config, variance="learned", cpu=True)
    assert run.variance == "learned"
    assert bits(network) < before


class OneOutput(TwoOutputs):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t)[:, :2]


def test_a_network_without_a_variance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"network: got an output of shape \(8, 2\), expected \(8, 4\)"):
        train(OneOutput(), ring(8), SCHEDULE, out=tmp_path, config=quick(), variance="learned", cpu=True)


def test_the_command_trains_a_learned_variance_on_the_cosine_schedule(tmp_path: Path) -> None:
    arguments = ["--preset", "tiny", "--cpu", "--quiet", "--schedule", "cosine", "--variance", "learned"]
    settings = ["--steps", "2", "--sample-every", "2", "--sample-count", "2", "--sample-steps", "2"]
    assert main(["--out", str(tmp_path / "run"), *arguments, *settings, "--vlb-weight", "0.01"]) == 0
    run = load_run(tmp_path / "run")
    assert (run.variance, run.levels, run.training.vlb_weight) == ("learned", 17, 0.01)
    assert isinstance(run.network, UNet)
    assert run.network(torch.zeros(1, 1, 8, 8), torch.zeros(1)).shape == (1, 2, 8, 8)
    assert (tmp_path / "run" / "samples" / "step-00000002.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vlb-weight", "0.1"], "vlb_weight: is for a learned variance only"),
        (["--condition-dropout", "0.1"], "condition_dropout: the data has no condition to drop"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["--out", str(tmp_path / "run"), "--preset", "tiny", "--cpu", *words]) == 2
    assert message in capsys.readouterr().err
