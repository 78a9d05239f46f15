"""The op alone: gradient embeddings of a batch from what the last convolution reads. Seconds; no data needed.

python examples/op.py
"""

import torch
import torch.nn.functional as F

from alges_fast import native_status, pixel_gradients

torch.manual_seed(0)
features = torch.randn(4, 16, 56, 56)  # (B, d, h, w): the last convolution's input
weight, bias = torch.randn(5, 16), torch.randn(5)  # a 1 x 1 convolution to five classes

found = pixel_gradients(features, weight, bias, outputs=("image", "semantic", "entropy"))

print(native_status())
print("a row per image and class, d wide:", tuple(found.image.shape))
print("norms summed by predicted class:", tuple(found.semantic.shape))
print("entropy summed over pixels, per image:", [round(value) for value in found.entropy.tolist()])

# The same from autograd, an image at a time: the gradient of the loss against the model's own prediction (Eq. 4).
for image, embedding in zip(features, found.image, strict=True):
    head = weight.clone().requires_grad_()
    logits = F.conv2d(image[None], head[:, :, None, None], bias)
    F.cross_entropy(logits, logits.argmax(1)).backward()
    torch.testing.assert_close(embedding, head.grad, rtol=1e-4, atol=1e-6)
print("autograd agrees")
