"""Whatever happens to the bytes of a model's files: a BadFile, or a source whose every tensor can be read."""

import json
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from puna.core.errors import BadFile, BadModel
from puna.core.tensor.decode import decode_tensor
from puna.core.tensor.weights import open_weights

BLOCKS = Path(__file__).parent / "fixtures" / "ggml-blocks" / "blocks.gguf"
INDEX = "model.safetensors.index.json"
SLACK = 1 << 20  # bytes that opening may take beyond the size of the files


def fuzz(cases):
    """Settings: the same cases in every run, however slow the machine."""
    return settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


# ---- what is done to the bytes ----

NUMBERS = [0, 1, 2, 7, 31, 32, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
where = st.floats(0, 1, exclude_max=True)  # of the bytes before the tensors' own, mostly
change = st.one_of(
    st.tuples(st.just("byte"), where, st.integers(0, 255)),
    st.tuples(st.just("number"), where, st.sampled_from(NUMBERS), st.sampled_from([4, 8])),
    st.tuples(st.just("nudge"), where, st.sampled_from([-32, -8, -1, 1, 8, 32])),
    st.tuples(st.just("cut"), where),
    st.tuples(st.just("drop"), where, st.integers(1, 64)),
    st.tuples(st.just("insert"), where, st.binary(min_size=1, max_size=32)),
    st.tuples(st.just("splice"), where, where, st.integers(1, 200)),
)
changes = st.lists(change, min_size=1, max_size=2)


def apply(content, header, steps):
    """Return content with the steps applied; positions are within its first `header` bytes."""
    data = bytearray(content)
    for kind, place, *values in steps:
        at = int(place * min(header, len(data)))
        if kind == "byte":
            data[at : at + 1] = bytes(values)
        elif kind == "number":
            data[at : at + values[1]] = (values[0] % 256 ** values[1]).to_bytes(values[1], "little")
        elif kind == "nudge":
            data[at : at + 8] = ((int.from_bytes(data[at : at + 8], "little") + values[0]) % 2**64).to_bytes(
                8, "little"
            )
        elif kind == "cut":
            del data[int(place * len(data)) :]
        elif kind == "drop":
            del data[at : at + values[0]]
        elif kind == "insert":
            data[at:at] = values[0]
        else:
            source = int(values[0] * len(data))
            data[at:at] = data[source : source + values[1]]
    return bytes(data)


def survives(files, size):
    """Open files and read every tensor, within the memory allowed. Returns whether they could be opened."""
    tracemalloc.start()
    try:
        source = open_weights(files)
    except BadFile:
        source = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < size + SLACK
    if source is None:
        return False
    for name, info in source.tensors.items():
        raw = source.raw(name)
        assert raw.nbytes == info.nbytes <= size
        try:
            assert decode_tensor(raw, info.format, info.shape).shape == info.shape
        except BadModel as error:  # a type that was changed into one of those without a decoder
            assert info.format.name in str(error)
    return True


# ---- GGUF ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def small_gguf(folder):
    """A file with values of every type and tensors in a few formats, and the length of what precedes their bytes."""
    path = folder / "seed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("general.alignment", 32)
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(f"a.{name}", 1)
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_token_list(["<s>", "▁a", "b"])
    writer.add_token_scores([0.0, -1.0, -2.0])
    writer.add_uint16("split.count", 1)
    weight = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    for name in ("F32", "F16", "Q4_0", "Q8_0"):
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    content = path.read_bytes()
    return content, len(content) - 2 * (1024 + 512 + 144 + 272)


def test_the_seed_itself_can_be_read(folder, small_gguf):
    path = folder / "whole"
    path.write_bytes(small_gguf[0])
    assert survives(path, len(small_gguf[0]))


@fuzz(1200)
@given(steps=changes)
def test_a_damaged_gguf_file_is_refused_or_read(folder, small_gguf, steps):
    content = apply(*small_gguf, steps)
    path = folder / "damaged"
    path.write_bytes(content)
    survives(path, len(content))


@fuzz(150)
@given(kind=st.integers(0, 43), tensor=st.integers(0, 23), steps=st.lists(change, max_size=1))
def test_any_tensor_under_any_type_is_refused_or_read(folder, kind, tensor, steps):
    content = bytearray(BLOCKS.read_bytes())
    name = list(open_weights(BLOCKS).tensors)[tensor].encode()
    at = content.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 16  # two dimensions
    content[at : at + 4] = struct.pack("<I", kind)
    path = folder / "retyped"
    path.write_bytes(apply(content, len(content), steps))
    survives(path, path.stat().st_size)


@fuzz(100)
@given(name=st.binary(max_size=12), value=st.binary(max_size=40), kind=st.integers(0, 14), count=st.integers(0, 3))
def test_any_key_with_any_value_is_refused_or_read(folder, name, value, kind, count):
    header = b"GGUF" + struct.pack("<IQQQ", 3, 0, count, len(name)) + name
    path = folder / "key"
    path.write_bytes(header + struct.pack("<I", kind) + value)
    survives(path, path.stat().st_size)


# ---- safetensors ----


def small_safetensors():
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((2, 3)).astype(np.float32), "b": np.ones((3, 1, 2), np.float16)}
    arrays |= {"c": np.arange(5), "d": np.array([True, False])}
    return save(arrays)


SMALL = small_safetensors()


def write_checkpoint(folder, content, **side):
    """Replace the files of a checkpoint; side: other files' bytes by name. Returns their total size."""
    folder.mkdir(exist_ok=True)
    files = {"config.json": b"{}", "model.safetensors": content, **side}
    for old in folder.iterdir():
        old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return sum(map(len, files.values()))


def test_the_seed_checkpoint_can_be_read(folder):
    size = write_checkpoint(folder / "whole-st", SMALL)
    assert survives(folder / "whole-st", size)


@fuzz(500)
@given(steps=changes)
def test_a_damaged_safetensors_file_is_refused_or_read(folder, steps):
    size = write_checkpoint(folder / "st", apply(SMALL, len(SMALL), steps))
    survives(folder / "st", size)


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.sampled_from([*NUMBERS, -1, 2**70]), st.floats(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
dtypes = st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E5M2", "Q4_K", "", "f32"])
sizes = st.lists(st.sampled_from([-1, 0, 1, 2, 3, 2**31, 2**62, 2**64]), max_size=4)
entries = st.fixed_dictionaries(
    {
        "dtype": dtypes | anything,
        "shape": sizes | anything,
        "data_offsets": st.lists(st.sampled_from([-1, 0, 4, 8, 12, 24, 2**62]), min_size=1, max_size=3) | anything,
    }
)


@fuzz(250)
@given(header=st.dictionaries(st.text(max_size=6), entries | anything, max_size=4), data=st.binary(max_size=32))
def test_any_header_is_refused_or_read(folder, header, data):
    text = json.dumps(header).encode()
    size = write_checkpoint(folder / "header", struct.pack("<Q", len(text)) + text + data)
    survives(folder / "header", size)


@fuzz(200)
@given(
    entry=entries,
    shape=st.lists(st.integers(1, 3), max_size=3),
    start=st.sampled_from([0, 0, 0, 4, -4]),
    wrong=st.sampled_from(["dtype", "shape", "data_offsets", "none"]),
)
def test_an_entry_with_one_wrong_field_is_refused_or_read(folder, entry, shape, start, wrong):
    nbytes = 4 * int(np.prod(shape))
    right = {"dtype": "F32", "shape": shape, "data_offsets": [start, start + nbytes]}
    header = {"t": {field: (entry if field == wrong else right)[field] for field in right}}
    text = json.dumps(header).encode()
    size = write_checkpoint(folder / "entry", struct.pack("<Q", len(text)) + text + bytes(nbytes))
    survives(folder / "entry", size)


@fuzz(150)
@given(
    index=st.fixed_dictionaries(
        {
            "weight_map": anything
            | st.dictionaries(
                st.sampled_from(["a", "b", "c", "z"]),
                st.sampled_from(["model.safetensors", "../model.safetensors", "", ".", "config.json", "a\0"]),
            )
        }
    )
    | anything,
    steps=st.lists(change, max_size=1),
)
def test_any_index_is_refused_or_read(folder, index, steps):
    text = json.dumps(index).encode()
    size = write_checkpoint(folder / "index", SMALL, **{INDEX: apply(text, len(text), steps)})
    survives(folder / "index", size)


@fuzz(100)
@given(config=st.binary(max_size=40) | anything.map(lambda value: json.dumps(value).encode()))
def test_any_config_is_refused_or_read(folder, config):
    size = write_checkpoint(folder / "config", SMALL, **{"config.json": config})
    survives(folder / "config", size)
