"""What a plugin computes with: operations that dispatch on the kind of array, and rotary tables."""

from .ops import Array, Matrix, Rotation, attend, embed, gated_mlp, linear, project, rms_norm, rope, rotations
from .rope import (
    Pairing,
    RopeTable,
    Scaling,
    rope_base_from_hf,
    rope_table,
    scaling_from_gguf,
    scaling_from_hf,
)

__all__ = [
    "Array",
    "Matrix",
    "Pairing",
    "RopeTable",
    "Rotation",
    "Scaling",
    "attend",
    "embed",
    "gated_mlp",
    "linear",
    "project",
    "rms_norm",
    "rope",
    "rope_base_from_hf",
    "rope_table",
    "rotations",
    "scaling_from_gguf",
    "scaling_from_hf",
]
