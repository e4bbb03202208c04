"""What a service is made of, for all that start one: its samplers, and the token that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from ddpm_deploy.backends.auto import NAME as AUTO
from ddpm_deploy.cli import words
from ddpm_deploy.sampler import Sampler
from ddpm_deploy.serve.streams import open_streams

TOKEN_VARIABLE = "DDPM_DEPLOY_TOKEN"


def load_samplers(
    stack: ExitStack, bundle: str | None, *, backend: str, precision: str, device: str, **opening: Any
) -> list[Sampler]:
    """Those of each device's streams; the stack closes them. device: several with commas. precision: of `auto`,
    several too."""
    precisions = words(precision) if backend == AUTO else precision
    return [
        sampler
        for place in words(device)
        for sampler in stack.enter_context(
            open_streams(bundle, backend=backend, precision=precisions, device=place, **opening)
        )
    ]


def token_of(environment: Mapping[str, str]) -> str | None:
    """What clients must send, None where nothing is asked for; ValueError for what cannot be sent, or is forgotten."""
    token = environment.get(TOKEN_VARIABLE)
    if token is not None and not (token and token.isascii() and token.isprintable() and token == token.strip()):
        what = "has spaces around it, or signs other than those of ASCII" if token.strip() else "is empty"
        raise ValueError(f"{TOKEN_VARIABLE}: {what}; set it to a token that clients can send, or unset it")
    return token
