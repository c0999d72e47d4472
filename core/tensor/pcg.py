"""Random numbers that a seed reproduces on every machine and in every release."""

from __future__ import annotations

import numpy as np


class Pcg:
    """The PCG-DXSM generator of Go's math/rand/v2, seeded as Ollama seeds it; equal seeds give equal streams."""

    MASK64 = 2**64 - 1
    MASK128 = 2**128 - 1
    MULTIPLIER = 2549297995355413924 << 64 | 4865540595714422341
    INCREMENT = 6364136223846793005 << 64 | 1442695040888963407

    def __init__(self, seed: int) -> None:
        seed &= self.MASK64
        self._state = seed << 64 | (seed ^ 0x9E3779B9)

    def next64(self) -> int:
        """Return 64 random bits."""
        self._state = (self._state * self.MULTIPLIER + self.INCREMENT) & self.MASK128
        high, low = self._state >> 64, self._state & self.MASK64
        high ^= high >> 32
        high = high * 0xDA942042E4DD58B5 & self.MASK64
        high ^= high >> 48
        return high * (low | 1) & self.MASK64

    def uniform(self) -> np.float32:
        """Return a number in [0, 1) with 24 random bits, which a float32 holds exactly."""
        return np.float32((self.next64() >> 32 & 0xFFFFFF) / 2**24)
