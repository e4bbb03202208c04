"""Many samples, in shards that are drawn once, wherever and however often the drawing is interrupted."""

from ddpm_deploy.bulk.draw import draw_set
from ddpm_deploy.bulk.folder import SetFolder
from ddpm_deploy.bulk.order import Order
from ddpm_deploy.bulk.verify import verify_set

__all__ = ["Order", "SetFolder", "draw_set", "verify_set"]
