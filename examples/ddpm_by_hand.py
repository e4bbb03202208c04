"""The two algorithms of the DDPM paper (Ho, Jain, Abbeel 2020), line by line: `python examples/ddpm_by_hand.py`.

Written out on purpose, without the package's schedules and solvers; only the network and the picture grid are
borrowed. tests/test_examples.py shows that `sample` is what `make_plan("ddpm", ...)` computes.

The paper counts t = 1 ... T; the arrays here count 0 ... T-1, and `abar` is the paper's alpha-bar.
Needs torch, scikit-learn and tqdm; 4000 training steps on a laptop's CPU give readable digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from ddpm_deploy.images import grid
from ddpm_deploy.model import PointConfig, PointNet

T = 1000
betas = np.linspace(1e-4, 0.02, T)  # section 4: beta_1 ... beta_T
abar = np.cumprod(1 - betas)  # eq. 4


def train(network: nn.Module, data: Tensor, steps: int, batch_size: int = 128, lr: float = 2e-3) -> list[float]:
    """Algorithm 1. data: (N, D) in [-1, 1]. Returns the loss of every step."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    image, noise = (torch.tensor(np.sqrt(table), dtype=torch.float32)[:, None] for table in (abar, 1 - abar))
    losses = []
    for _ in tqdm(range(steps), desc="training", unit="step"):  # 1: repeat
        x0 = data[torch.randint(len(data), (batch_size,))]  # 2: x_0 ~ q(x_0)
        t = torch.randint(T, (batch_size,))  # 3: t ~ Uniform({1, ..., T})
        eps = torch.randn_like(x0)  # 4: eps ~ N(0, I)
        predicted = network(image[t] * x0 + noise[t] * eps, t.float())
        loss = (eps - predicted).square().mean()  # 5: gradient step on |eps - eps_theta(sqrt(abar) x_0 + ..., t)|^2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        losses.append(loss.item())
    return losses  # 6: until converged


def sample(
    eps_theta: Callable[[Any, int], Any], x_T: Any, noise: Callable[[int], Any], *, variance: str = "large"
) -> Any:
    """Algorithm 2, on numpy arrays or torch tensors.

    eps_theta: (x, t) -> the predicted noise. noise: t -> z of x_T's shape.
    variance: "large" is sigma_t^2 = beta_t, "small" is beta~_t (section 3.2 has both).
    """
    before = np.append(1, abar[:-1])
    squared = betas if variance == "large" else betas * (1 - before) / (1 - abar)
    x = x_T  # 1: x_T ~ N(0, I)
    for t in reversed(range(T)):  # 2: for t = T, ..., 1
        z = noise(t) if t > 0 else 0  # 3: z ~ N(0, I) if t > 1, else 0
        mean = (x - float(betas[t] / np.sqrt(1 - abar[t])) * eps_theta(x, t)) / float(np.sqrt(1 - betas[t]))
        x = mean + float(np.sqrt(squared[t])) * z  # 4: x_{t-1} = mean + sigma_t z
    return x  # 6: return x_0


def load_data() -> Tensor:
    """(1797, 64) real handwritten digits, 8x8 pixels in [-1, 1]."""
    return torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)


def make_network() -> nn.Module:
    """A perceptron on 64 pixels: quick on a CPU; a U-Net draws better."""
    return PointNet(PointConfig(dim=64, hidden=384, layers=4))


@torch.no_grad()
def draw(network: nn.Module, count: int) -> np.ndarray:
    """(count, 64) new digits."""
    bar = tqdm(total=T, desc="sampling", unit="step")

    def eps_theta(x: Tensor, t: int) -> Tensor:
        bar.update()
        return network(x, torch.full((len(x),), float(t)))

    x_T = torch.randn(count, 64)
    with bar:
        return sample(eps_theta, x_T, lambda t: torch.randn_like(x_T)).numpy()


def main() -> None:
    """Train, sample, save a picture."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="training steps")
    parser.add_argument("--count", type=int, default=40, help="pictures to draw")
    parser.add_argument("--out", type=Path, default=Path("ddpm_by_hand.png"), help="PNG to write")
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    network = make_network()
    losses = train(network, load_data(), args.steps)
    pictures = draw(network.eval(), args.count).reshape(-1, 1, 8, 8)
    grid(pictures, columns=10).save(args.out)
    print(f"loss {np.mean(losses[-100:]):.4f} over the last steps; wrote {args.out}")


if __name__ == "__main__":
    main()
