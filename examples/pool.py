"""A model and a pool: embed every image in one pass, then pick a varied few of those that would teach most. Seconds.

python examples/pool.py
"""

import torch
from torch import nn

from alges_fast import LastLayer, embed_pool, kmeans_plusplus

torch.manual_seed(0)
model = nn.Sequential(  # any network: its last layer is found by running it once
    nn.Conv2d(3, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 5, 1),
    nn.Upsample(scale_factor=2, mode="bilinear"),
)
pool = [(f"frame{i:03d}", torch.rand(3, 32, 32)) for i in range(200)]  # (id, image) pairs, or a Dataset of them

print("last layer:", LastLayer.find(model, torch.rand(1, 3, 32, 32)).name)
embeddings = embed_pool(model, pool, output="image", batch_size=16, progress=False)
print(f"{len(embeddings.ids)} embeddings of {tuple(embeddings.values.shape[1:])} numbers")

seeding = kmeans_plusplus(embeddings.values.flatten(1), 10, seed=0)
print("annotate next:", [embeddings.ids[index] for index in seeding.indices])
