"""Runtimes that evaluate a graph of the bundle, behind one contract; none is imported before it is opened."""

from ddpm_deploy.backends.base import BACKENDS, Availability, Backend, available_backends, open_backend

__all__ = ["BACKENDS", "Availability", "Backend", "available_backends", "open_backend"]
