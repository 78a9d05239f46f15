"""Seeds for independent random streams, each named by its purpose and its place in an experiment.

Nothing in an experiment draws from a global generator, so no part of it can disturb another: what round 3 of one
strategy draws is the same whether other strategies, seeds or rounds ran before it or not.
"""

from __future__ import annotations

import hashlib


def stream_seed(purpose: str, *numbers: int) -> int:
    """A seed, 0 to 2^63 - 1, for the stream of this purpose at these numbers (seed, round, epoch, ...).

    Streams of different names or numbers are independent for all practical purposes: the seed is a cryptographic hash.
    """
    name = " ".join([purpose, *(str(int(number)) for number in numbers)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
