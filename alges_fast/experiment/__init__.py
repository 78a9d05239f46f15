"""The paper's experiments: Algorithm 1 of ALGES for every strategy and seed, resumable at every step."""

from alges_fast.experiment.loop import run_experiment
from alges_fast.experiment.setting import Monitor, initial_pool
from alges_fast.job import LostProcess

__all__ = ["LostProcess", "Monitor", "initial_pool", "run_experiment"]
