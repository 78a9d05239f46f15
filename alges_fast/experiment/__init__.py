"""The paper's experiments: Algorithm 1 of ALGES for every strategy and seed, resumable at every step."""

from alges_fast.experiment.loop import run_experiment
from alges_fast.experiment.processes import lost_process
from alges_fast.experiment.setting import Monitor, initial_pool

__all__ = ["Monitor", "initial_pool", "lost_process", "run_experiment"]
