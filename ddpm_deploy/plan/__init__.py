"""Plans: solvers compiled to tables of coefficients, built by name, run, printed, saved and loaded."""

from ddpm_deploy.plan.builder import PlanBuilder
from ddpm_deploy.plan.plan import Denoise, Frame, Noise, Plan, Prediction
from ddpm_deploy.plan.rows import Row

__all__ = ["Denoise", "Frame", "Noise", "Plan", "PlanBuilder", "Prediction", "Row"]
