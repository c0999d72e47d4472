"""Weights that stay in their file: results are those of packed weights to the bit, and their memory is the system's."""

import mmap
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench import make_model, shapes

from puna.core.tensor import embed, gated_mlp, linear, moe
from puna.core.tensor.blocks import by_name
from puna.core.tensor.cpu import CpuLoader
from puna.core.tensor.layouts import LAYOUTS, WIDE_FORMATS
from puna.core.tensor.mapped import MappedBytes, map_file
from puna.core.tensor.source import TensorInfo
from puna.core.tensor.weights import open_weights

from .mapped_runner import Findings
from .packed import random_blocks
from .serving import running_server, upload

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is told apart by Linux's files")


class Held:
    """A file of one tensor (`WeightSource`)."""

    def __init__(self, name, *shape, seed=0):
        rng, form, rows = np.random.default_rng(seed), by_name(name), int(np.prod(shape[:-1]))
        if name in WIDE_FORMATS:  # random bits would be infinite here and there
            numbers = rng.integers(0x3C00, 0x3F80, (rows, shape[-1] * form.nbytes // 2), np.uint16)
            self.bytes = numbers.view(np.uint8)
            self.bytes.flags.writeable = False
        else:
            self.bytes = random_blocks(rng, form, rows, shape[-1])
        self.info = TensorInfo("w", form, shape, self.bytes.nbytes)

    def raw(self, name):
        return self.bytes

    def release(self, name):
        pass


def both(name, *shape, seed=0, **options):
    """Return a weight packed, and one that stays where it is."""
    held = Held(name, *shape, seed=seed)
    return [CpuLoader(mapped=mapped).matrix(held, held.info, **options) for mapped in (None, MappedBytes())]


def numbers(*shape):
    return np.random.default_rng(9).standard_normal(shape, np.float32)


@pytest.mark.parametrize("columns", [256, 768])
@pytest.mark.parametrize("name", [*LAYOUTS, *WIDE_FORMATS])
def test_products_are_those_of_packed_weights_to_the_bit(name, columns):
    packed, mapped = both(name, 96, columns)
    assert mapped.data is None
    for T in (1, 5, 7, 40):
        np.testing.assert_array_equal(linear(numbers(T, columns), mapped), linear(numbers(T, columns), packed))
    tokens = np.array([3, 95], np.int32)
    np.testing.assert_array_equal(embed(tokens, mapped), embed(tokens, packed))


@pytest.mark.parametrize("name", ["Q8_0", "F16"])
def test_rows_may_end_within_a_chunk_of_256_columns(name):
    packed, mapped = both(name, 32, 96)
    assert mapped.data is None
    np.testing.assert_array_equal(linear(numbers(9, 96), mapped), linear(numbers(9, 96), packed))


@pytest.mark.parametrize("T", [1, 30])
@pytest.mark.parametrize("names", [("Q4_K", "Q4_K", "Q6_K"), ("Q4_K", "Q5_K", "Q4_K")])
def test_mlps_and_mixtures_are_those_of_packed_weights_to_the_bit(names, T):
    sizes = (512, 256), (512, 256), (256, 512)
    x, share = numbers(T, 256), np.abs(numbers(T, 2))
    chosen = np.stack([np.random.default_rng(t).permutation(4)[:2] for t in range(T)]).astype(np.int32)
    packed, mapped = zip(
        *[both(name, 4, *size, seed=i) for i, (name, size) in enumerate(zip(names, sizes, strict=True))], strict=True
    )
    np.testing.assert_array_equal(moe(x, chosen, share, *mapped), moe(x, chosen, share, *packed))
    packed, mapped = ([part.each[1] for part in parts] for parts in (packed, mapped))
    np.testing.assert_array_equal(gated_mlp(x, *mapped), gated_mlp(x, *packed))
    np.testing.assert_array_equal(gated_mlp(x, mapped[0], *packed[1:]), gated_mlp(x, *packed))


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [("Q4_K", (33, 256), {}), ("F32", (32, 40), {}), ("F16", (64, 32), {"transposed": True})],
    ids=["rows that fill no pair of groups", "columns that fill no record", "turned"],
)
def test_what_cannot_be_read_as_it_lies_is_packed(name, shape, options):
    packed, other = both(name, *shape, **options)
    x = numbers(3, packed.shape[1])
    np.testing.assert_array_equal(linear(x, other), linear(x, packed))
    assert other.nbytes == packed.nbytes > 0


@LINUX
def test_what_is_resident_of_a_file_is_what_was_read_of_it(tmp_path):
    path, size = tmp_path / "weights", 8 << 20
    path.write_bytes(bytes(size))
    data, other = map_file(path), map_file(path)
    counted, around = MappedBytes(), 1 << 20  # what the system brings in beside a page
    assert counted.resident == 0
    raw = np.frombuffer(data, np.uint8)
    counted.add(raw[size // 2 :])
    assert counted.resident <= around
    raw[: size // 2].sum()
    assert size // 2 <= counted.resident <= size // 2 + around
    np.frombuffer(other, np.uint8).sum()  # another map of the file is none of ours
    assert counted.resident <= size // 2 + around
    data.madvise(mmap.MADV_DONTNEED)
    assert counted.resident == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A file of 60 MB, nearly all of it experts."""
    path = tmp_path_factory.mktemp("mapped") / "model.gguf"
    with pytest.MonkeyPatch.context() as patch:
        shape = replace(shapes.SHAPES["tiny-moe"], hidden=512, ffn=1024, layers=2, experts=32)
        patch.setitem(shapes.SHAPES, "mapped", shape)
        make_model.make_model(path, "mapped", "Q4_K_M")
    return path


def findings(model, weights) -> Findings:
    command = [sys.executable, "-m", "tests.mapped_runner", str(model), weights]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    return msgspec.json.decode(done.stdout, type=Findings)


@LINUX
def test_replies_are_the_same_and_take_no_memory_for_weights(model):
    packed, mapped = findings(model, "packed"), findings(model, "mmap")
    size = model.stat().st_size
    assert len(packed.tokens) == 48
    assert mapped.tokens == packed.tokens
    assert packed.taken > size
    assert packed.taken - mapped.taken > 0.95 * size
    assert packed.loaded > 0.95 * size
    assert mapped.loaded < 0.1 * size  # nothing was read yet but norms, and what the tokenizer needed
    assert 0.5 * size < mapped.answered < 1.1 * size  # some experts were asked
    source = open_weights(model)
    assert max(info.nbytes for info in source.tensors.values() if len(info.shape) < 3) < 0.02 * size
    source.close()


@LINUX
@pytest.mark.anyio
async def test_ps_says_what_of_the_file_is_in_memory(model, tmp_path):
    size = model.stat().st_size
    async with running_server(tmp_path, weights="mmap", context_length=128) as live:
        digest = await upload(live.store, model)
        created = await live.http.post("/api/create", json={"model": "m", "files": {"m.gguf": digest}, "stream": False})
        assert created.json() == {"status": "success"}
        shown = []
        for prompt in ("", "a long enough prompt asks most of the experts there are"):
            asked = {"model": "m", "prompt": prompt, "stream": False, "options": {"num_predict": 8}}
            assert (await live.http.post("/api/generate", json=asked)).status_code == 200
            shown.append((await live.http.get("/api/ps")).json()["models"][0]["size"])
    assert shown[0] < 0.1 * size < 0.3 * size < shown[1]
