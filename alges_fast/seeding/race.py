"""The exponential race: a weighted draw that any cut of the pool, any thread and any backend makes alike.

Point i draws E_i ~ Exp(1) and the smallest E_i / w_i wins, so i wins with probability w_i / Σ w (Efraimidis & Spirakis
2006). E_i comes from a counter-based generator, Philox4x32-10 (Salmon et al. 2011), keyed by the seed with the counter
(i // 2, round, stream): no state, no prefix sum, and the same number wherever point i is held. This file is the
definition; the native kernels repeat it.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int], seed: int) -> tuple[Tensor, ...]:
    """Philox4x32-10 of a counter of four 32-bit words, as int64 tensors that broadcast or ints; four words of int64."""
    c0, c1, c2, c3 = (torch.as_tensor(word) for word in counter)
    key0, key1 = seed & WORD, seed >> 32 & WORD
    for _ in range(10):
        # The product of two 32-bit words may wrap past 2^63, but shift and mask still give its two halves.
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & WORD) ^ c1 ^ key0,
            product1 & WORD,
            (product0 >> 32 & WORD) ^ c3 ^ key1,
            product0 & WORD,
        )
        key0, key1 = key0 + KEY_STEPS[0] & WORD, key1 + KEY_STEPS[1] & WORD
    return c0, c1, c2, c3


def uniforms(index: range | Tensor, seed: int, round: int, stream: int, device: torch.device) -> Tensor:
    """(N,) float64 in (0, 1), 52 bits each: one for every global index, a range of step 1 or an int64 tensor."""
    if isinstance(index, range):
        if not index:
            return torch.empty(0, dtype=torch.float64, device=device)
        pair = torch.arange(index.start >> 1, (index.stop + 1) >> 1, device=device)
        words = torch.stack(philox((pair & WORD, pair >> 32, round, stream), seed), dim=1)
        high, low = words.reshape(-1, 2)[index.start & 1 :][: len(index)].unbind(1)
    else:
        words = torch.stack(philox((index >> 1 & WORD, index >> 33, round, stream), seed), dim=1)
        odd = (index & 1).bool()
        high, low = torch.where(odd, words[:, 2], words[:, 0]), torch.where(odd, words[:, 3], words[:, 1])
    return ((high << 20 | low >> 12).double() + 0.5) * 2.0**-52


def exponentials(index: range | Tensor, seed: int, round: int, stream: int, device: torch.device) -> Tensor:
    """(N,) float64, E_i of every global index."""
    return -torch.log1p(-uniforms(index, seed, round, stream, device))
