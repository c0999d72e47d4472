"""Rotary position embeddings: the frequencies of a head's pairs and the ways to stretch them to longer contexts.

Sources: RoFormer, arXiv:2104.09864, section 3; YaRN, arXiv:2309.00071, section 3; the llama3 rule as published in the
`rope_scaling` of Llama 3.1's config.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import BadModel, Unsupported
from ..keys import Keys

Pairing = Literal["interleaved", "split"]  # which dimensions turn together: (2k, 2k+1), or (k, k + n/2)


class Scaling(Protocol):
    """A rule that stretches the frequencies of unscaled pairs."""

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied with."""

    def apply(self, theta: npt.NDArray[np.float64], base: float) -> npt.NDArray[np.float64]:
        """Return the scaled frequencies. theta: [n/2] radians a position."""


@dataclass(frozen=True)
class NoScaling:
    """The frequencies as they are."""

    magnitude: float = 1.0

    def apply(self, theta: npt.NDArray[np.float64], base: float) -> npt.NDArray[np.float64]:
        """Return theta."""
        return theta


@dataclass(frozen=True)
class Linear:
    """Positions divided by a factor (position interpolation, arXiv:2306.15595)."""

    factor: float
    magnitude: float = 1.0

    def apply(self, theta: npt.NDArray[np.float64], base: float) -> npt.NDArray[np.float64]:
        """Return theta / factor."""
        return theta / self.factor


@dataclass(frozen=True)
class Llama3:
    """Long wavelengths divided by a factor, short ones left, a linear blend between."""

    factor: float
    low: float
    high: float
    original: int  # context length before stretching
    magnitude: float = 1.0

    def apply(self, theta: npt.NDArray[np.float64], base: float) -> npt.NDArray[np.float64]:
        """Return theta with each pair divided according to its wavelength."""
        turns = self.original * theta / (2 * np.pi)  # full turns within the original context
        if self.low == self.high:  # no band between: blending would divide by zero
            keep = (turns > self.high).astype(np.float64)
        else:
            keep = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return theta * (keep + (1.0 - keep) / self.factor)


@dataclass(frozen=True)
class Yarn:
    """Slow pairs interpolated, fast ones left, a ramp between; logits sharpened by the magnitude."""

    factor: float
    original: int
    magnitude: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def apply(self, theta: npt.NDArray[np.float64], base: float) -> npt.NDArray[np.float64]:
        """Return theta blended with theta / factor along the ramp."""
        n = 2 * len(theta)

        def pair(turns: float) -> float:  # the (fractional) pair that makes this many turns in the original context
            return n * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(base))

        low = max(0, math.floor(pair(self.beta_fast)))
        high = min(n - 1, math.ceil(pair(self.beta_slow)))
        keep = 1.0 - np.clip((np.arange(n // 2) - low) / max(0.001, high - low), 0.0, 1.0)
        return theta * (keep + (1.0 - keep) / self.factor)


@dataclass(frozen=True)
class RopeTable:
    """What `rotations` needs: n/2 frequencies, the pairing and the magnitude."""

    frequencies: npt.NDArray[np.float32]  # [n/2] radians a position
    pairing: Pairing
    magnitude: float
    streams: npt.NDArray[np.int64] | None = None  # [n/2], by which stream of positions each pair turns; None: by one


def rope_table(
    size: int,
    *,
    base: float,
    pairing: Pairing,
    scaling: Scaling | None = None,
    divisors: Any = None,
    sections: Sequence[int] = (),
    interleaved: bool = False,
) -> RopeTable:
    """Return the table for heads whose first size dimensions turn.

    divisors: [size/2] float32, the ready-made scaling that GGUF files carry as `rope_freqs.weight`, instead of scaling.
    sections: how many pairs turn by the first stream of positions, by the second, and so on (M-RoPE, arXiv:2409.12191,
    section 2.1); frequencies run on from one section to the next. interleaved: pairs of the streams alternate while
    there are any of each, and what is left turns by the first, so that each stream has fast pairs and slow ones
    (Qwen3-VL Technical Report, arXiv:2511.21631, section 2). Raises BadModel if size is odd, a divisor is not positive,
    or sections do not cover the pairs.
    """
    if size % 2:
        raise BadModel(f"rotary embeddings turn pairs of dimensions, and {size} is odd")
    given = None if divisors is None else np.asarray(divisors, np.float64)
    theta = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    scaling = scaling or NoScaling()
    if given is None:
        theta = scaling.apply(theta, base)
    elif not (np.isfinite(given).all() and (given > 0).all()):
        raise BadModel("rope_freqs.weight holds a divisor that is not a positive number")
    else:
        theta = theta / given
    streams = _streams(sections, len(theta), interleaved) if sections else None
    return RopeTable(theta.astype(np.float32), pairing, scaling.magnitude, streams)


def _streams(sections: Sequence[int], pairs: int, interleaved: bool) -> npt.NDArray[np.int64]:
    """Return by which stream each pair turns. Raises BadModel unless each stream gets as many as its section says."""
    if sum(sections) != pairs:
        raise BadModel(f"rotary sections {list(sections)} cover {sum(sections)} pairs, expected {pairs}")
    if not interleaved:
        return np.repeat(np.arange(len(sections)), sections)
    streams = np.zeros(pairs, np.int64)
    for stream, count in enumerate(sections[1:], 1):
        streams[stream : count * len(sections) : len(sections)] = stream
    if np.bincount(streams, minlength=len(sections)).tolist() != list(sections):
        raise BadModel(f"rotary sections {list(sections)} cannot alternate over {pairs} pairs")
    return streams


def grid_rope_table(
    size: int, *, base: float, axes: int = 2, pairing: Pairing = "split", by_turns: bool = False
) -> RopeTable:
    """Return the table for heads of patches of a picture, whose pairs turn by the row, then by the column.

    Each axis has size / 2 / axes frequencies of its own, from 1 downwards; by_turns: of those that a text's heads have,
    each axis has every second. Raises BadModel if size does not divide.
    """
    each, rest = divmod(size, 2 * axes)
    if rest:
        raise BadModel(f"rotary embeddings of {axes} axes need heads of a multiple of {2 * axes}, and {size} is none")
    steps, first = np.arange(each, dtype=np.float64) * axes, np.arange(axes) * by_turns
    theta = base ** (-(first[:, None] + steps).reshape(-1) / (each * axes))
    return RopeTable(theta.astype(np.float32), pairing, 1.0, np.repeat(np.arange(axes), each))


def scaling_from_gguf(keys: Keys) -> Scaling:
    """Return the rule that `rope.scaling.*` describes. Raises BadModel for a rule that has no meaning here."""
    # Older files give a factor and no type, and mean linear, which is how llama.cpp reads them.
    unnamed = "linear" if "rope.scaling.factor" in keys else "none"
    kind = keys.text("rope.scaling.type", unnamed, allowed=("none", "linear", "yarn"))
    if kind == "none":
        return NoScaling()
    factor = keys.number("rope.scaling.factor", low=1e-6, high=1e6)
    if kind == "linear":
        return Linear(factor)
    original = keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))
    return Yarn(
        factor,
        original,
        magnitude=keys.number("rope.scaling.attn_factor", 1.0) * _stretch(factor),
        beta_fast=keys.number("rope.scaling.yarn_beta_fast", 32.0, low=1e-3),
        beta_slow=keys.number("rope.scaling.yarn_beta_slow", 1.0, low=1e-3),
    )


def _stretch(factor: float) -> float:
    """Return the magnitude of YaRN's paper, which GGUF files leave out of theirs."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def scaling_to_gguf(scaling: Scaling) -> dict[str, str | float]:
    """Return the keys that `scaling_from_gguf` reads. Raises Unsupported for a rule that there are no keys for."""
    if isinstance(scaling, NoScaling):
        return {"rope.scaling.type": "none"}
    if isinstance(scaling, Linear):
        return {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    if isinstance(scaling, Yarn):
        return {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": scaling.factor,
            "rope.scaling.original_context_length": scaling.original,
            "rope.scaling.attn_factor": scaling.magnitude / _stretch(scaling.factor),
            "rope.scaling.yarn_beta_fast": scaling.beta_fast,
            "rope.scaling.yarn_beta_slow": scaling.beta_slow,
        }
    raise Unsupported(f"GGUF files have no keys for rotary embeddings that are scaled by {scaling}")


def rope_divisors(size: int, *, base: float, scaling: Scaling) -> npt.NDArray[np.float32]:
    """Return [size/2] what frequencies are divided by: the ready-made scaling that GGUF files carry for some rules."""
    theta = base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
    return (theta / scaling.apply(theta, base)).astype(np.float32)


def scaling_from_hf(keys: Keys, rule: Keys | None = None) -> Scaling:
    """Return the rule that a config.json's `rope_scaling` (or newer `rope_parameters`) describes.

    rule: the section that describes it, where it has another name.
    """
    rule = rule or keys.section("rope_scaling") or keys.section("rope_parameters")
    if rule is None:
        return NoScaling()
    name = "rope_type" if "rope_type" in rule else "type"  # the older spelling
    # "mrope" is how older configs say that there are sections, which are no scaling.
    kind = rule.text(name, "default", allowed=("default", "linear", "llama3", "yarn", "mrope"))
    if kind in ("default", "mrope"):
        return NoScaling()
    factor = rule.number("factor", low=1e-6, high=1e6)
    if kind == "linear":
        return Linear(factor)
    original = rule.integer("original_max_position_embeddings", keys.integer("max_position_embeddings"))
    if kind == "llama3":
        low = rule.number("low_freq_factor", low=0.0)
        return Llama3(factor, low, rule.number("high_freq_factor", low=low), original)
    return Yarn(
        factor,
        original,
        magnitude=_yarn_magnitude(rule, factor),
        beta_fast=rule.number("beta_fast", 32.0, low=1e-3),
        beta_slow=rule.number("beta_slow", 1.0, low=1e-3),
    )


def _yarn_magnitude(rule: Keys, factor: float) -> float:
    """Return the factor on cosines and sines: given outright, as a ratio of two scales, or by the paper's formula."""

    def sharpen(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1.0 else 1.0

    if "attention_factor" in rule:
        return rule.number("attention_factor", low=0.0)
    scale, scale_all = (rule.number(name, 0.0, low=0.0) for name in ("mscale", "mscale_all_dim"))
    if scale and scale_all:  # 0 counts as missing, as in the code that such configs are written for
        return sharpen(scale) / sharpen(scale_all)
    return sharpen(1.0)


def rope_base_from_hf(keys: Keys, default: float = 10000.0) -> float:
    """Return the base of the frequencies, which newer configs nest in `rope_parameters`."""
    nested = keys.section("rope_parameters")
    if nested is not None and "rope_theta" in nested:
        return nested.number("rope_theta", low=1.0001)
    return keys.number("rope_theta", default, low=1.0001)
