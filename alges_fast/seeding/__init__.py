"""Seeding: choosing a batch from a pool by k-means++ or greedy k-centre.

seeding.py   the two public functions: arguments, choice of backend, the loop of picks
race.py      the draw: an exponential race over counter-based random numbers
shard.py     a shard and its running distances, over torch or faiss; native.py and cuda.py fuse them into one read
ranks.py     what ranks that share a pool tell each other
"""

from alges_fast.seeding.seeding import Seeding, k_center_greedy, kmeans_plusplus

__all__ = ["Seeding", "k_center_greedy", "kmeans_plusplus"]
