"""In-flight batching: requests at different steps and of different solvers share every call of the network."""

from ddpm_deploy.serve.engine import Engine
from ddpm_deploy.serve.handle import Handle, Preview
from ddpm_deploy.serve.observing import Step
from ddpm_deploy.serve.streams import open_streams

__all__ = ["Engine", "Handle", "Preview", "Step", "open_streams"]
