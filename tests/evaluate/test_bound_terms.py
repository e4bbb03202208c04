"""The bound against closed forms, torch's distributions and the signal-to-noise form."""

from __future__ import annotations

import math
from itertools import pairwise

import gaussian_model as truth
import numpy as np
import pytest
import torch
from gaussian_model import MANIFEST, SCHEDULE, SHAPE, data, denoiser, entropy_bits, spread, with_
from scipy.stats import norm
from torch.distributions import Normal, kl_divergence

from ddpm_deploy.evaluate.bound import BITS, ReverseChain, Task, measure
from ddpm_deploy.evaluate.decoder import bin_log_mass, log_likelihood
from ddpm_deploy.noise import row_noise
from ddpm_deploy.schedule import NoiseSchedule, posterior_coefficients, transition
from ddpm_deploy.train.bound import VarianceBound

RNG = np.random.default_rng(5)


def chain_truth(schedule: NoiseSchedule, t: np.ndarray, variance: str) -> tuple[float, np.ndarray]:
    """L_T and the other terms of the best denoiser in nats per dimension, from the formulas of Gaussians."""
    alpha, sigma = schedule.alpha[t], schedule.sigma[t]
    before = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    _, from_x0, small = posterior_coefficients(*before, alpha, sigma)
    _, beta = transition(*before, alpha, sigma)
    small[-1] = small[-2]
    modelled = beta.copy() if variance == "large" else small.copy()
    modelled[-1] = small[-1]
    wrong = spread(alpha, sigma)
    terms = (np.log(modelled / small) + small / modelled - 1 + from_x0**2 * wrong / modelled) / 2
    terms[-1] = (math.log(2 * math.pi * modelled[-1]) + wrong[-1] / modelled[-1]) / 2
    second = truth.DEVIATION**2 + truth.MEAN**2
    return (alpha[0] ** 2 * second + sigma[0] ** 2 - 1 - math.log(sigma[0] ** 2)) / 2, terms


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("rows", [None, 13])
def test_the_best_denoiser_of_gaussian_data_reaches_the_analytic_bound_within_its_error(variance, rows):
    chain = ReverseChain.of(with_(variance=variance), rows)
    found = measure(denoiser(), chain, Task(data(600), {}, None))
    prior, terms = chain_truth(SCHEDULE, chain.plan.t.astype(int), variance)
    expected = (prior + terms.sum()) * BITS
    assert found.bits == pytest.approx(expected, abs=3 * found.error)
    assert found.error < 0.02 * abs(expected)
    each = np.array([term.std() for term in found.terms]) / math.sqrt(600) * BITS
    assert np.all(np.abs(found.per_step - terms * BITS) < 5 * each)


def test_with_the_true_variance_of_each_step_the_bound_is_the_entropy_of_the_data():
    """Then the chain is the true reverse process, and the only loss is that it starts from N(0, 1)."""
    alpha, sigma = SCHEDULE.alpha, SCHEDULE.sigma
    chain = ReverseChain.of(with_(variance="learned"))

    def evaluate(feeds):
        t = int(feeds["t"][0])
        row = len(chain) - 1 - t
        before = (alpha[t - 1], sigma[t - 1]) if t else (1.0, 0.0)
        _, from_x0, small = posterior_coefficients(*before, alpha[t], sigma[t])
        true = math.log(small + from_x0**2 * spread(alpha[t], sigma[t]))
        share = (true - chain.log_small[row]) / (chain.log_large[row] - chain.log_small[row])
        mean = denoiser()(feeds)
        return np.concatenate([mean, np.full_like(mean, 2 * share - 1)], axis=1)

    found = measure(evaluate, chain, Task(data(800), {}, None))
    last = Normal(alpha[-1] * truth.MEAN, math.sqrt(alpha[-1] ** 2 * truth.DEVIATION**2 + sigma[-1] ** 2))
    start = float(kl_divergence(last, Normal(0.0, 1.0))) * BITS
    assert found.bits == pytest.approx(entropy_bits() + start, abs=3 * found.error)
    assert measure(denoiser(), ReverseChain.of(MANIFEST), Task(data(800), {}, None)).bits > found.bits


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_every_term_is_what_torch_computes_from_the_distributions(variance):
    """Each Gaussian is built from `NoiseSchedule.posterior`, and torch compares the two."""
    manifest, levels = with_(variance=variance, prediction="eps", clip=(-1.0, 1.0)), 256
    x0 = np.rint(RNG.uniform(0, 255, (3, *SHAPE))) / 127.5 - 1
    chain = ReverseChain.of(manifest)

    def evaluate(feeds):  # any network will do
        doubled = variance == "learned"
        out = np.sin(3 * feeds["x"]) * 0.8
        return np.concatenate([out, np.cos(feeds["x"])], axis=1) if doubled else out

    found = measure(evaluate, chain, Task(x0.astype(np.float32), {}, levels, seed=4))
    assert len(chain) == SCHEDULE.T
    clipped = torch.tensor(SCHEDULE.posterior(x0, x0, 1)[1]).log()
    for row, t in enumerate(range(SCHEDULE.T - 1, -1, -1)):
        z = row_noise(4, range(3), row, SHAPE)
        x = (SCHEDULE.alpha[t] * x0.astype(np.float32) + SCHEDULE.sigma[t] * z).astype(np.float32)
        output = evaluate({"x": x, "t": np.full(3, t)})
        d = np.clip((x - SCHEDULE.sigma[t] * output[:, :2].astype(np.float64)) / SCHEDULE.alpha[t], -1, 1)
        low = torch.tensor(SCHEDULE.posterior(x0, x, t)[1]).log() if t else clipped
        high = math.log(SCHEDULE.betas[t])
        if variance == "learned":
            share = torch.tensor((output[:, 2:].astype(np.float64) + 1) / 2)
            log_variance = share * high + (1 - share) * low
        else:
            log_variance = torch.tensor(high) if variance == "large" and t else low
        deviation = torch.exp(log_variance / 2).expand(x.shape)
        if t:
            true, modelled = SCHEDULE.posterior(x0, x.astype(float), t)[0], SCHEDULE.posterior(d, x.astype(float), t)[0]
            q = Normal(torch.tensor(true), torch.exp(low / 2))
            expected = kl_divergence(q, Normal(torch.tensor(modelled), deviation))
        else:
            law = Normal(torch.tensor(d), deviation)
            top, bottom = (torch.tensor(x0 + side / 255) for side in (1, -1))
            upper = torch.where(top > 1, torch.ones(()), law.cdf(top))
            lower = torch.where(bottom < -1, torch.zeros(()), law.cdf(bottom))
            mass = upper - lower
            kept = mass > 1e-9  # the others are lost in the difference
            assert kept.double().mean() > 0.05
            got = torch.tensor(log_likelihood(x0, d, np.broadcast_to(log_variance, x.shape), levels))
            torch.testing.assert_close(got[kept], mass[kept].log(), rtol=1e-5, atol=1e-5)
            continue
        assert found.terms[row, :, 0] == pytest.approx(expected.flatten(1).mean(1).numpy(), rel=1e-5)


def test_what_a_learned_variance_is_trained_on_is_what_is_measured():
    chain, x0 = ReverseChain.of(with_(variance="learned", prediction="v")), data(3)
    loss = VarianceBound(SCHEDULE, "v", torch.device("cpu"))
    for t in (0, 1, 30, SCHEDULE.T - 1):
        row, z = SCHEDULE.T - 1 - t, RNG.standard_normal(x0.shape)
        x, (m, v) = chain.noisy(row, x0, z), (0.5 * RNG.standard_normal((2, *x0.shape))).astype(np.float32)
        trained = loss(*map(torch.from_numpy, (x0, x, m, v)), torch.full((3,), t))
        measured = chain.terms(row, x0, x, np.concatenate([m, v], axis=1), None) * BITS
        assert measured == pytest.approx(trained.numpy(), rel=2e-3)


def test_with_the_posteriors_variance_the_terms_are_the_fall_of_the_signal_to_noise_ratio():
    """Kingma et al. 2021, eq. 13: half the fall of SNR times the squared error."""
    chain, x0 = ReverseChain.of(MANIFEST), data(4)
    found = measure(denoiser(), chain, Task(x0, {}, None, seed=2))
    snr = (SCHEDULE.alpha / SCHEDULE.sigma) ** 2
    for row, t in enumerate(range(SCHEDULE.T - 1, 0, -1)):
        z = row_noise(2, range(4), row, SHAPE)
        x = (SCHEDULE.alpha[t] * x0 + SCHEDULE.sigma[t] * z).astype(np.float32)
        d = truth.guess(x, SCHEDULE.alpha[t], SCHEDULE.sigma[t])
        expected = (snr[t - 1] - snr[t]) / 2 * ((d - x0) ** 2).reshape(4, -1).mean(axis=1)
        assert found.terms[row, :, 0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_one_denoiser_has_the_same_bits_whatever_it_predicts(prediction):
    task = Task(data(20), {}, None)
    plain = measure(denoiser(), ReverseChain.of(MANIFEST), task)
    other = measure(denoiser(prediction=prediction), ReverseChain.of(with_(prediction=prediction)), task)
    assert other.bits == pytest.approx(plain.bits, rel=1e-4)


def test_a_flow_schedule_that_ends_in_pure_noise_has_no_prior_term():
    schedule = NoiseSchedule.flow_matching(40)
    chain = ReverseChain.of(with_(schedule=schedule, prediction="flow"))
    found = measure(denoiser(schedule, "flow"), chain, Task(data(300), {}, None))
    assert found.prior.max() == 0
    assert found.bits == pytest.approx(chain_truth(schedule, np.arange(39, -1, -1), "small")[1].sum() * BITS,
                                       abs=3 * found.error)  # fmt: skip


def test_the_masses_of_all_levels_sum_to_one_and_are_those_of_scipy():
    values = np.linspace(-1, 1, 256)
    for mean, deviation in [(0.1, 0.05), (-0.99, 0.2), (1.3, 0.01), (0.0, 3.0)]:
        mass = np.exp(bin_log_mass(values, np.float64(mean), 1 / deviation, 256))
        assert mass.sum() == pytest.approx(1, abs=1e-12)
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    expected = [norm.cdf(b, 0.1, 0.05) - norm.cdf(a, 0.1, 0.05) for a, b in pairwise(edges)]
    mass = np.exp(bin_log_mass(values, np.float64(0.1), 1 / 0.05, 256))
    assert mass == pytest.approx(np.array(expected), rel=1e-6, abs=1e-14)


def test_a_value_far_out_in_either_tail_has_a_finite_likelihood():
    far = log_likelihood(np.array([1.0, -1.0, 0.5, -0.5]), np.array([-1.0, 1.0, -1.0, 1.0]), math.log(1e-4), 256)
    assert np.isfinite(far).all()
    assert far[2] == pytest.approx(far[3], rel=1e-9)
    assert far[2] < -10_000


def test_samples_and_batches_do_not_change_each_others_terms():
    chain, x0 = ReverseChain.of(MANIFEST, 9), data(5)
    whole = measure(denoiser(), chain, Task(x0, {}, None, draws=2))
    small = measure(denoiser(), chain, Task(x0, {}, None, draws=2, batch_size=3))
    assert np.array_equal(whole.terms, small.terms)
    assert np.array_equal(measure(denoiser(), chain, Task(x0[:2], {}, None, draws=2)).terms, whole.terms[:, :2])


def test_more_draws_of_noise_lessen_the_error_of_the_noise():
    chain, x0 = ReverseChain.of(MANIFEST, 12), data(40)
    few, many = (measure(denoiser(), chain, Task(x0, {}, None, draws=draws)) for draws in (4, 16))
    assert many.noise_error / few.noise_error == pytest.approx(0.5, abs=0.15)
    assert many.noise_error < many.error
    assert measure(denoiser(), chain, Task(x0, {}, None)).noise_error is None


def test_conditions_reach_the_network_with_their_own_samples():
    x0 = data(6)
    labels = np.arange(6)

    def evaluate(feeds):
        assert np.array_equal(feeds["x"][:, 0, 0, 0] > 50, feeds["labels"] > 2)
        return feeds["x"] * 0

    shifted = x0 + 1000 * (labels > 2).reshape(-1, 1, 1, 1)
    measure(evaluate, ReverseChain.of(MANIFEST, 7), Task(shifted, {"labels": labels}, None, batch_size=4, draws=2))
