"""Teaching a fresh text encoder to read captions, before it is trained together with a denoiser.

The loss of the denoiser says little about which of two shapes is the red one: in a picture that is nearly all noise it
is too faint to tell, and in one with less noise it can be seen. So the encoder first learns from scenes alone, without
any picture, to say in the features of the whole text what is to be on the left or on top, and what on the other side.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from ddpm_deploy.model.text import TextEncoder
from ddpm_deploy.shapes.caption import captions
from ddpm_deploy.shapes.scene import FACT_SIZES, UNASKED, draw_scenes, facts
from ddpm_deploy.tokenizer import Tokenizer

SEED = 11  # other scenes than those of the denoiser; without held-out combinations, like them
STEPS, BATCH = 2000, 64
LR, HEAD_LR = 2e-3, 2e-2


def teach(encoder: TextEncoder, tokenizer: Tokenizer, steps: int = STEPS, progress: bool = False) -> None:
    """Train the encoder so that one matrix can read the facts of a scene from its pooled features."""
    head = nn.Linear(encoder.config.pooled_channels, sum(FACT_SIZES))
    groups = [{"params": head.parameters(), "lr": HEAD_LR}, {"params": encoder.parameters(), "lr": LR}]
    optimizer = torch.optim.Adam(groups)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)))
    for step in tqdm(range(steps), desc="learning to read", unit="step", disable=not progress):
        indices = np.arange(step * BATCH, (step + 1) * BATCH)
        scenes = draw_scenes(SEED, indices)
        tokens = torch.from_numpy(tokenizer.encode(captions(scenes, SEED, indices)))
        loss = facts_loss(head(encoder(tokens)[1]), torch.from_numpy(facts(scenes)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rates.step()


def facts_loss(logits: Tensor, asked: Tensor) -> Tensor:
    """Cross-entropy of all facts, with those left out that no one asks for. asked: (n, 5), see `facts`."""
    heads = zip(torch.split(logits, list(FACT_SIZES), dim=1), asked.unbind(dim=1), strict=True)
    return torch.stack([functional.cross_entropy(head, wanted, ignore_index=UNASKED) for head, wanted in heads]).sum()
