"""Every element type a weight file may hold: how many elements share a block, and how many bytes the block takes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BadModel


@dataclass(frozen=True)
class BlockFormat:
    """An element type: rows are whole blocks of `elements` numbers stored in `nbytes` bytes."""

    id: int
    name: str
    elements: int
    nbytes: int

    def row_bytes(self, n: int) -> int:
        """Return the bytes that a row of n elements takes. Raises BadModel unless n is a whole number of blocks."""
        if n % self.elements:
            raise BadModel(f"a row of {n} elements is not a whole number of {self.name} blocks of {self.elements}")
        return n // self.elements * self.nbytes


# Source: the enumeration ggml_type and the block structs of ggml. Ids that are absent here were retired.
# Q8_1 and Q8_K are formats of activations; no file should hold them.
FORMATS: dict[int, BlockFormat] = {
    row[0]: BlockFormat(*row)
    for row in (
        (0, "F32", 1, 4),
        (1, "F16", 1, 2),
        (2, "Q4_0", 32, 18),
        (3, "Q4_1", 32, 20),
        (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24),
        (8, "Q8_0", 32, 34),
        (9, "Q8_1", 32, 36),
        (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110),
        (12, "Q4_K", 256, 144),
        (13, "Q5_K", 256, 176),
        (14, "Q6_K", 256, 210),
        (15, "Q8_K", 256, 292),
        (16, "IQ2_XXS", 256, 66),
        (17, "IQ2_XS", 256, 74),
        (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50),
        (20, "IQ4_NL", 32, 18),
        (21, "IQ3_S", 256, 110),
        (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136),
        (24, "I8", 1, 1),
        (25, "I16", 1, 2),
        (26, "I32", 1, 4),
        (27, "I64", 1, 8),
        (28, "F64", 1, 8),
        (29, "IQ1_M", 256, 56),
        (30, "BF16", 1, 2),
        (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66),
        (39, "MXFP4", 32, 17),
        (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
        (42, "Q2_0", 64, 18),
    )
}

# Types that only safetensors has: position tables, masks and packed codes. Their ids are ours, negative so that no
# GGUF file can name one.
SAFETENSORS_ONLY: tuple[BlockFormat, ...] = (
    BlockFormat(-1, "BOOL", 1, 1),
    BlockFormat(-2, "U8", 1, 1),
    BlockFormat(-3, "U16", 1, 2),
    BlockFormat(-4, "U32", 1, 4),
    BlockFormat(-5, "U64", 1, 8),
)

_BY_NAME = {form.name: form for form in (*FORMATS.values(), *SAFETENSORS_ONLY)}


def by_id(id: int) -> BlockFormat:
    """Return the format with this GGUF type id. Raises BadModel naming the id if it is unknown or retired."""
    if id not in FORMATS:
        raise BadModel(f"element type {id} is unknown or retired")
    return FORMATS[id]


def by_name(name: str) -> BlockFormat:
    """Return the format called name: a GGUF type (Q4_K) or a safetensors dtype (BF16). Raises BadModel if unknown."""
    if name not in _BY_NAME:
        raise BadModel(f"element type {name!r} is unknown; known are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
