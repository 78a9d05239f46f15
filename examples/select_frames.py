"""A model of your own and video it has not seen: train on a few frames, then ask which windows to annotate. A minute.

    python examples/select_frames.py

(Not called select.py: Python would then take it for its own module `select`.)
"""

import torch
import torch.nn.functional as F
from torch import nn

from alges_fast import select
from alges_fast.data import synthetic, to_input

SIZE = (64, 112)
frames = synthetic.plan(full=False, split="alges", seed=0)["train"]
drawn = {frame.id: synthetic.draw(frame, SIZE) for frame in frames[::6][:30]}
images = {id: to_input(torch.from_numpy(image)) for id, (image, _) in drawn.items()}
masks = {id: torch.from_numpy(mask).long() for id, (_, mask) in drawn.items()}
labelled = list(drawn)[:6]

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 5, stride=2, padding=2),
    nn.ReLU(),
    nn.Conv2d(16, 32, 5, padding=2),
    nn.ReLU(),
    nn.Conv2d(32, len(synthetic.CLASSES), 1),
    nn.Upsample(scale_factor=2, mode="bilinear"),
)
optimiser = torch.optim.Adam(model.parameters(), 3e-3)
for _ in range(40):
    logits = model(torch.stack([images[id] for id in labelled]))
    loss = F.cross_entropy(logits, torch.stack([masks[id] for id in labelled]), ignore_index=255)
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(f"loss on {len(labelled)} labelled frames: {loss.item():.2f}")

# As many pixels as two frames have, in windows of a 4 x 4 grid; nothing like what is labelled already.
model.eval()
budget = 2 * SIZE[0] * SIZE[1]
chosen = select(model, list(images.items()), pixels=budget, regions=(4, 4), strategy="alges-effort", labelled=labelled)
for window in chosen.ids[:8]:
    print(f"{window.id}: {window.width} x {window.height} pixels at ({window.x}, {window.y})")
