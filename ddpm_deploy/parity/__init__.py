"""How far a runtime is from the float32 reference: at each step, along a trajectory, and in the final samples."""

from ddpm_deploy.parity.budget import BUDGETS, Budget, budget_for
from ddpm_deploy.parity.measure import Comparison, compare, relative_l2, replay

__all__ = ["BUDGETS", "Budget", "Comparison", "budget_for", "compare", "relative_l2", "replay"]
