"""The paper's experiments: Algorithm 1 of ALGES for every strategy and seed, resumable at every step."""

from alges_fast.experiment.loop import Monitor, initial_pool, lost_process, run_experiment

__all__ = ["Monitor", "initial_pool", "lost_process", "run_experiment"]
