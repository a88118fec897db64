"""Seeds that depend on what is drawn for, never on when: one generator per (seed, question, purpose)."""

import hashlib

import numpy as np


def keyed_generator(seed: int, *keys: str) -> np.random.Generator:
    """A generator determined by the seed and the keys alone, e.g. (seed, question id, "sampling").

    Counter-based (Philox), so that streams of different keys are independent, and the same on every machine.
    """
    digest = hashlib.blake2b("\x1f".join((str(seed), *keys)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
