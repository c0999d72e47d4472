"""Vector code on other processors: what older ones compute here, and what is emitted for those that are not here."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from numba import njit, types
from numba.core import config
from numba.extending import intrinsic

from puna.core.tensor import activate, attend, linear, simd
from puna.core.tensor.blocks import by_name
from puna.core.tensor.cpu_attention import CpuSeen, CpuSpans
from puna.core.tensor.simd import BYTE, CODES, FLOATS, INTS, Emitter, features, vector
from puna.core.tensor.tiles import ElementType, new_tiles, store

from .packed import extreme_blocks, packed, random_blocks

ROOT = Path(__file__).parents[1]
OLDER = {  # processors that numba can compile for on any x86-64, by LLVM's names, with formats of weights and caches
    "haswell": ("+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt", "IQ4_NL", "f16"),
    "x86-64": ("+sse2", "Q5_K", "q8_0"),
}


# ---- older processors, on this one ---------------------------------------------------------------------------------


def computed(name: str, element: ElementType) -> dict[str, np.ndarray]:
    """Return an activation, a product and attention over a cache of these formats, as this process does them."""
    rng, form = np.random.default_rng(0), by_name(name)
    weight = packed(form, random_blocks(rng, form, 40, 512))
    extremes = [packed(form, extreme_blocks(rng, form, 32, 512, high=high)) for high in (True, False)]
    ones = np.repeat(np.float32([[1], [-1]]), 512, axis=1)
    tiles, table = new_tiles(9, 2, 32, 64, element), np.arange(9, dtype=np.int32)
    keys, values = (rng.standard_normal((130, 2, size), np.float32) for size in (32, 64))
    store(keys, values, np.arange(130, dtype=np.int32), tiles)
    spans = CpuSpans(tiles, np.array([[0, 9, 121, 0]], np.int32), table)
    q = rng.standard_normal((9, 6, 32), np.float32)
    return {
        "gelu": activate(rng.standard_normal(50, np.float32), "gelu"),
        "product": linear(rng.standard_normal((11, 512), np.float32), weight),
        "few extremes": np.stack([linear(ones, weight) for weight in extremes]),
        "many extremes": np.stack([linear(np.tile(ones, (4, 1)), weight) for weight in extremes]),
        "attention": attend(q, CpuSeen((spans,), 64, window=100), scale=0.2),
        "capped": attend(q, CpuSeen((spans,), 64), scale=0.2, soft_cap=2.0),
    }


ELSEWHERE = """
import sys
import numpy as np
from puna.core.tensor.simd import features
from tests.test_simd import computed
assert "avx512f" not in features()
np.savez(sys.argv[3], **computed(*sys.argv[1:3]))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="older processors of another kind")
@pytest.mark.parametrize("name", OLDER)
def test_an_older_processor_computes_the_same(name, tmp_path):
    """Kernels compiled for it are cached beside the others, by its name."""
    wanted, form, element = OLDER[name]
    env = {**os.environ, "NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": wanted}
    result = tmp_path / "result.npz"
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, form, element, str(result)], cwd=ROOT, env=env, check=True, timeout=300
    )
    here = computed(form, element)
    with np.load(result) as found:
        for exact in ("product", "few extremes", "many extremes", "gelu"):
            np.testing.assert_array_equal(found[exact], here[exact])
        for attention in ("attention", "capped"):
            np.testing.assert_allclose(found[attention], here[attention], rtol=1e-5, atol=1e-6)


# ---- what is emitted for others ------------------------------------------------------------------------------------


@pytest.fixture
def compiled_for(monkeypatch):
    """Return a function that compiles one use of an emitter for a processor, to assembly."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()

    def compile_for(triple: str, wanted: str, emit) -> str:
        monkeypatch.setattr(config, "CPU_NAME", "generic")
        monkeypatch.setattr(config, "CPU_FEATURES", wanted)
        features.cache_clear()
        module = ir.Module()
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [BYTE.as_pointer()] * 3), "f")
        builder = ir.IRBuilder(function.append_basic_block())
        emit(Emitter(builder), *function.args)
        builder.ret_void()
        machine = llvm.Target.from_triple(triple).create_target_machine(features=wanted, opt=2)
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
        return str(machine.emit_assembly(parsed))

    yield compile_for
    features.cache_clear()


def one_dot(e, sums, unsigned, signed):
    e.store(e.dot4(e.load(INTS, sums), e.load(CODES, unsigned), e.load(CODES, signed)), sums)


def one_multiply_add(e, out, a, b):
    e.store(e.fma(e.load(FLOATS, a), e.load(FLOATS, b), e.load(FLOATS, out)), out)


def one_lookup(e, out, indices, _):
    e.store(e.lookup(range(16), e.load(CODES, indices)), out)


ARM, INTEL = "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"


@pytest.mark.parametrize(
    ("triple", "wanted", "instruction", "count"),
    [
        (INTEL, "+avx512f,+avx512bw,+avx512vnni", "vpdpbusd", 1),
        (INTEL, "+avx512f,+avx512bw", "vpmaddwd", 2),
        (INTEL, "+avx2,+avxvnni", "vpdpbusd", 2),
        (INTEL, "+avx2", "vpmaddwd", 4),
        (INTEL, "+sse2", "pmaddwd", 8),
        (ARM, "+neon,+dotprod,+i8mm", "usdot", 4),
        (ARM, "+neon,+dotprod", "smull", 16),
        (ARM, "+neon", "smull", 16),
    ],
)
def test_a_dot_product_becomes_the_instructions_that_a_processor_has(compiled_for, triple, wanted, instruction, count):
    assembly = compiled_for(triple, wanted, one_dot)
    assert assembly.count(instruction) == count, assembly


@pytest.mark.parametrize(("wanted", "instruction", "count"), [("+avx2,+fma", "vfmadd", 2), ("+sse2", "mulpd", 8)])
def test_a_fused_multiply_add_calls_no_library(compiled_for, wanted, instruction, count):
    assembly = compiled_for(INTEL, wanted, one_multiply_add)
    assert assembly.count(instruction) == count and "fmaf" not in assembly, assembly


def test_a_lookup_is_one_permutation_where_there_is_one(compiled_for):
    assert compiled_for(INTEL, "+avx512f,+avx512bw", one_lookup).count("vpshufb") == 1


@pytest.mark.parametrize(("triple", "wanted"), [(INTEL, "+sse2"), (INTEL, "+avx2"), (ARM, "+neon")])
def test_a_lookup_compiles_for_processors_without_one(compiled_for, triple, wanted):
    assert "ret" in compiled_for(triple, wanted, one_lookup)


def test_features_are_those_of_the_processor_that_numba_compiles_for(monkeypatch):
    monkeypatch.setattr(config, "CPU_NAME", "haswell")
    monkeypatch.setattr(config, "CPU_FEATURES", "+avx2,-avx512f,+fma")
    features.cache_clear()
    try:
        assert features() == {"avx2", "fma"}
        monkeypatch.setattr(config, "CPU_NAME", None)
        monkeypatch.setattr(config, "CPU_FEATURES", None)
        features.cache_clear()
        assert features() == {feature for feature, on in llvm.get_host_cpu_features().items() if on}
    finally:
        features.cache_clear()


# ---- multiply-adds, where the processor has no instruction for them -------------------------------------------------


def test_a_multiply_add_without_the_instruction_rounds_once(monkeypatch):
    monkeypatch.setattr(simd, "fused", lambda: False)

    @intrinsic
    def one(typing, a, b, c, at):
        def emit(context, builder, signature, args):
            e = Emitter(builder)
            places = [e.address(context, signature.args[i], args[i], args[3], 4) for i in range(3)]
            e.store(e.fma(*(e.load(FLOATS, place) for place in places)), places[2])
            return context.get_dummy_value()

        return types.void(a, b, c, at), emit

    @njit
    def every(a, b, c):
        for at in range(0, a.size, 16):
            one(a, b, c, at)

    a, b, c = np.random.default_rng(0).standard_normal((3, 4096), np.float32)
    c[::2] = -a[::2] * b[::2]  # what is left is what rounding twice would lose
    wanted = (a.astype(np.longdouble) * b + c).astype(np.float32)
    every(a, b, c)
    np.testing.assert_array_equal(c, wanted)
    assert c[::2].any()


# ---- float16, where the processor has no instruction for it ----------------------------------------------------------


def converted_without_instructions(monkeypatch, convert, x, result):
    """Return convert, from_half or to_half, of each element of x, as it is emitted for old processors."""
    monkeypatch.setattr(simd, "_native_halves", lambda: False)
    source, target = (ir.HalfType(), ir.FloatType()) if result is np.float32 else (ir.FloatType(), ir.HalfType())

    @intrinsic
    def one(typing, array, at, out):
        def emit(context, builder, signature, args):
            e = Emitter(builder)
            size, written = x.dtype.itemsize, np.dtype(result).itemsize
            found = e.load(vector(source), e.address(context, signature.args[0], args[0], args[1], size))
            value = convert(builder, found)
            assert value.type == vector(target)
            e.store(value, e.address(context, signature.args[2], args[2], args[1], written))
            return context.get_dummy_value()

        return types.void(array, types.intp, out), emit

    @njit
    def every(array, out):
        for at in range(0, array.size, 16):
            one(array, at, out)

    out = np.empty(x.size, np.dtype(f"u{np.dtype(result).itemsize}"))
    every(x.view(f"u{x.dtype.itemsize}"), out)
    return out.view(result)


def test_every_float16_is_widened_exactly(monkeypatch):
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    found = converted_without_instructions(monkeypatch, simd.from_half, x, np.float32)
    np.testing.assert_array_equal(found, x.astype(np.float32))  # a NaN equals a NaN
    np.testing.assert_array_equal(np.signbit(found), np.signbit(x))


def test_floats_are_rounded_to_float16_half_to_even(monkeypatch):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    every = every[np.isfinite(every)]
    between = (every[:-1].astype(np.float64) + every[1:]) / 2
    around = [np.nextafter(between.astype(np.float32), np.float32(side)) for side in (-np.inf, np.inf)]
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, np.uint32).view(np.float32)
    edges = np.float32([65519, 65520, 1e9, np.inf, np.nan])
    x = np.concatenate([every, between.astype(np.float32), *around, random, edges])
    x = np.concatenate([x, np.zeros(-len(x) % 16, np.float32)])
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = x.astype(np.float16)
    np.testing.assert_array_equal(converted_without_instructions(monkeypatch, simd.to_half, x, np.float16), wanted)
