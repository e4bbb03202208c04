"""Training a noise predictor."""

from ddpm_deploy.train.api import train
from ddpm_deploy.train.config import TrainConfig
from ddpm_deploy.train.data import Data, digits_arrays, load_data
from ddpm_deploy.train.runs import Run, load_run

__all__ = ["Data", "Run", "TrainConfig", "digits_arrays", "load_data", "load_run", "train"]
