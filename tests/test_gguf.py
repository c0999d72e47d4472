"""Reading GGUF files: what the reader returns, and how it refuses files that break the rules."""

import os
import struct
import tracemalloc

import gguf
import numpy as np
import pytest

from puna.core.errors import BadFile, NotFound
from puna.core.tensor.decode import decode_tensor
from puna.core.tensor.weights import open_weights

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}


def string(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def key(name, kind, value):
    data = string(value) if kind == STRING else struct.pack("<" + CODES[kind], value)
    return string(name) + struct.pack("<I", kind) + data


def array(name, kind, values, count=None):
    items = [string(value) if kind == STRING else struct.pack("<" + CODES[kind], value) for value in values]
    count = len(values) if count is None else count
    return string(name) + struct.pack("<IIQ", ARRAY, kind, count) + b"".join(items)


def tensor(name, dims, kind=0, offset=0, dimensions=None):
    """An entry; dims: fastest first, as in the file."""
    dimensions = len(dims) if dimensions is None else dimensions
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", dimensions, *dims, kind, offset)


def file(keys=(), tensors=(), data=b"", *, version=3, key_count=None, tensor_count=None, magic=b"GGUF", alignment=32):
    keys, tensors = list(keys), list(tensors)
    tensor_count = len(tensors) if tensor_count is None else tensor_count
    key_count = len(keys) if key_count is None else key_count
    header = magic + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(keys + tensors)
    return header + bytes(-len(header) % alignment) + data


@pytest.fixture
def opened(tmp_path):
    """Write bytes to a file and open it."""

    def write_and_open(content):
        path = tmp_path / "model"  # no suffix: the format is known by its first bytes
        path.write_bytes(content)
        return open_weights(path)

    return write_and_open


@pytest.mark.parametrize("version", [2, 3])
def test_values_of_every_type_are_read(opened, version):
    numbers = {
        U8: 200,
        I8: -3,
        U16: 60000,
        I16: -300,
        U32: 2**32 - 1,
        I32: -7,
        F32: 0.5,
        BOOL: True,
        U64: 2**63,
        I64: -1,
    }
    keys = [key(f"k{kind}", kind, value) for kind, value in {**numbers, F64: 0.1, STRING: "wörd"}.items()]
    source = opened(file(keys, version=version))
    assert source.kind == "gguf"
    assert source.metadata == {f"k{kind}": value for kind, value in {**numbers, F64: 0.1, STRING: "wörd"}.items()}
    assert source.metadata[f"k{BOOL}"] is True


@pytest.mark.parametrize("kind", sorted(CODES))
def test_arrays_of_numbers_are_read_only_numpy_arrays(opened, kind):
    values = opened(file([key("odd", STRING, "x"), array("a", kind, [1, 0, 1])])).metadata["a"]
    assert isinstance(values, np.ndarray)
    assert values.dtype == np.dtype(CODES[kind])
    assert values.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def test_any_byte_but_zero_is_true(opened):
    raw = string("a") + struct.pack("<IIQ", ARRAY, BOOL, 3) + bytes([0, 7, 255])
    assert opened(file([raw])).metadata["a"].tolist() == [False, True, True]


def test_arrays_of_strings_keep_bytes_that_are_not_utf_8(opened):
    values = opened(file([array("tokens", STRING, ["a", "▁b", "", b"\xff\xc3"])])).metadata["tokens"]
    assert values[:3] == ["a", "▁b", ""]
    assert values[3].encode("utf-8", "surrogateescape") == b"\xff\xc3"


@pytest.mark.parametrize(
    "odd", ["", "\0", "a\0\0\0\0\0\0\0\0b", "x" * 255, "x" * 256, "▁" * 30_000, b"\xe2\x96", "\0" * 9]
)
@pytest.mark.parametrize("every", [1, 100, 700])
def test_odd_strings_are_read_like_the_short_ones_around_them(opened, odd, every):
    texts = [odd if i % every == 0 else ("a", "▁b", "😀" * 3, b"\xff")[i % 4] for i in range(1, 1501)]
    values = opened(file([array("tokens", STRING, texts), key("next", U8, 7)])).metadata
    raw = [text.encode("utf-8", "surrogateescape") for text in values["tokens"]]
    assert raw == [text.encode() if isinstance(text, str) else text for text in texts]
    assert values["next"] == 7


def test_a_tensor_is_a_read_only_view_with_its_slowest_dimension_first(opened):
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    source = opened(file([], [tensor("t", (4, 3, 2))], values.tobytes()))
    info, raw = source.tensors["t"], source.raw("t")
    assert (info.name, info.shape, info.format.name, info.nbytes) == ("t", (2, 3, 4), "F32", 96)
    assert raw.shape == (6, 16)
    assert not raw.flags.writeable and not raw.flags.owndata
    np.testing.assert_array_equal(decode_tensor(raw, info.format, info.shape), values)


def test_tensors_keep_the_order_of_the_file(opened):
    entries = [tensor("b", (8,), offset=64), tensor("a", (8,), offset=0)]
    source = opened(file([], entries, bytes(96)))
    assert list(source.tensors) == ["b", "a"]


def test_the_data_begins_at_the_alignment_the_file_names(opened):
    content = file([key("general.alignment", U32, 512)], [tensor("t", (1,))], struct.pack("<f", 2.5), alignment=512)
    assert opened(content).raw("t").view("<f4") == 2.5


def test_an_unknown_tensor_is_a_key_error(opened):
    with pytest.raises(KeyError):
        opened(file()).raw("t")


def test_arrays_outlive_a_closed_source(opened):
    source = opened(file([array("n", U32, [5])], [tensor("t", (4,))], b"\1" * 16))
    raw, numbers = source.raw("t"), source.metadata["n"]
    source.close()
    del source
    assert raw.tolist() == [[1] * 16]
    assert numbers.tolist() == [5]


def test_a_file_of_the_gguf_package_is_read(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["<s>", "▁a"])
    writer.add_token_scores([0.0, -1.0])
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    writer.add_tensor(
        "w", gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = open_weights(path)
    assert source.metadata["general.architecture"] == "llama"
    assert source.metadata["tokenizer.ggml.tokens"] == ["<s>", "▁a"]
    assert source.metadata["tokenizer.ggml.scores"].tolist() == [0, -1]
    info = source.tensors["w"]
    assert info.shape == (4, 64)
    assert np.abs(decode_tensor(source.raw("w"), info.format, info.shape) - weight).max() < 0.02


REFUSED = {
    "nothing": (b"", "no weights"),
    "four bytes": (b"GGUF", "truncated"),
    "version 1": (file(version=1), "version 1"),
    "version 4": (file(version=4), "version 4"),
    "big-endian magic": (file(magic=b"FUGG"), "big-endian"),
    "big-endian version": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "more keys than bytes": (file(key_count=2**60), "keys"),
    "more tensors than bytes": (file(tensor_count=2**63), "tensors"),
    "a key longer than the file": (file([struct.pack("<Q", 2**40) + bytes(64)]), "limit"),
    "a key that is cut off": (file([struct.pack("<Q", 60_000) + bytes(64)]), "60000"),
    "a string longer than the file": (
        file([string("k") + struct.pack("<IQ", STRING, 2**62)]),
        "string of 4611686018427387904",
    ),
    "an array longer than the file": (file([array("k", F64, [1.0], count=2**61)]), "'k'"),
    "an array whose size overflows": (file([array("k", F64, [1.0], count=2**64 - 1)]), "'k'"),
    "more strings than bytes": (file([array("k", STRING, ["a"], count=2**32)]), "'k'"),
    "strings that end early": (file([array("k", STRING, ["eight ch"] * 9, count=14)]), "'k'"),
    "an array in an array": (file([string("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + bytes(64)]), "type 9"),
    "an unknown value type": (file([string("k") + struct.pack("<I", 13) + bytes(64)]), "type 13"),
    "the same key twice": (file([key("k", U8, 1), key("k", U8, 2)]), "'k' appears twice"),
    "the same tensor twice": (
        file([], [tensor("t", (1,)), tensor("t", (1,), offset=32)], bytes(64)),
        "'t' appears twice",
    ),
    "no dimensions": (file([], [tensor("t", ())], bytes(64)), "0 dimensions"),
    "five dimensions": (file([], [tensor("t", (1, 1, 1, 1, 1))], bytes(64)), "5 dimensions"),
    "2^32 - 1 dimensions": (file([], [tensor("t", (1,), dimensions=2**32 - 1)], bytes(64)), "4294967295 dimensions"),
    "an empty dimension": (file([], [tensor("t", (4, 0))], bytes(64)), "empty"),
    "a size that overflows": (file([], [tensor("t", (2**62, 2**62, 2**62, 2**62))], bytes(64)), "truncated"),
    "a row of part of a block": (file([], [tensor("t", (48,), 2)], bytes(64)), "multiple of the 32"),
    "a retired type": (file([], [tensor("t", (32,), 4)], bytes(64)), "'t': element type 4"),
    "an unknown type": (file([], [tensor("t", (32,), 999)], bytes(64)), "'t': element type 999"),
    "an offset off the alignment": (file([], [tensor("t", (1,), offset=4)], bytes(64)), "alignment"),
    "an offset beyond the file": (file([], [tensor("t", (1,), offset=2**63)], bytes(64)), "truncated"),
    "a tensor one byte too long": (file([], [tensor("t", (16,))], bytes(63)), "64 bytes|truncated"),
    "tensors that overlap": (file([], [tensor("t", (16,)), tensor("u", (1,), offset=32)], bytes(64)), "inside 't'"),
    "a tensor name that is too long": (file([], [tensor("t" * 70_000, (1,))], bytes(64)), "70000"),
    "alignment 0": (file([key("general.alignment", U32, 0)]), "general.alignment is 0"),
    "alignment 48": (file([key("general.alignment", U32, 48)]), "general.alignment is 48"),
    "alignment 4": (file([key("general.alignment", U32, 4)]), "general.alignment is 4"),
    "alignment 2 MiB": (file([key("general.alignment", U32, 1 << 21)]), "general.alignment is 2097152"),
    "an alignment that is a string": (file([key("general.alignment", STRING, "32")]), "general.alignment"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_file_is_refused_with_its_reason_and_little_memory(opened, case):
    content, reason = REFUSED[case]
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match=reason) as refused:
            opened(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "model" in str(refused.value)
    assert peak < len(content) + (1 << 20)


def test_every_truncation_is_refused(opened):
    content = file([array("k", STRING, ["ab", "c"]), key("n", U32, 7)], [tensor("t", (4,))], bytes(16))
    for length in range(len(content)):
        with pytest.raises(BadFile):
            opened(content[:length])


@pytest.mark.parametrize("missing", [1, 6, 9, 30_000])
def test_a_long_array_of_strings_that_the_file_cuts_off_is_refused(opened, missing):
    content = string("tokens") + struct.pack("<IIQ", ARRAY, STRING, 4000) + string("token") * 4000
    with pytest.raises(BadFile, match="truncated: the value of 'tokens'"):
        opened(file([content], alignment=1)[:-missing])


def test_a_large_vocabulary_takes_little_more_memory_than_its_bytes(opened):
    content = file([array("tokens", STRING, [f"token {i}" for i in range(50_000)]), array("s", F32, [0.0] * 50_000)])
    tracemalloc.start()
    try:
        source = opened(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.metadata["tokens"][49_999] == "token 49999"
    assert peak < 6 * len(content)  # a str costs about 60 bytes


def test_a_missing_file_and_a_pipe_are_refused(tmp_path):
    with pytest.raises(NotFound, match="none"):
        open_weights(tmp_path / "none.gguf")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadFile, match="regular file"):
        open_weights(tmp_path / "pipe")


def split(number, count, tensors=2, name=None):
    settings = [key("split.no", U16, number), key("split.count", U16, count), key("split.tensors.count", I32, tensors)]
    first = [key("general.name", STRING, "whole")] if number == 0 else []
    data = struct.pack("<f", number)
    return file(first + settings, [tensor(name or f"t{number}", (1,))], data)


@pytest.fixture
def splits(tmp_path):
    paths = [tmp_path / f"m-{i + 1:05}-of-00002.gguf" for i in range(2)]
    for number, path in enumerate(paths):
        path.write_bytes(split(number, 2))
    return paths


@pytest.mark.parametrize("number", [0, 1])
def test_any_split_opens_the_whole_model(splits, number):
    source = open_weights(splits[number])
    assert list(source.tensors) == ["t0", "t1"]
    assert source.raw("t1").view("<f4") == 1
    assert source.metadata["general.name"] == "whole"


def test_splits_in_a_store_need_no_names_and_no_order(splits):
    blobs = {"model-b.gguf": splits[1], "model-a.gguf": splits[0]}
    source = open_weights(blobs)
    assert list(source.tensors) == ["t0", "t1"]
    assert source.metadata["general.name"] == "whole"


def test_a_missing_split_is_named(splits):
    splits[1].unlink()
    with pytest.raises(BadFile, match=r"m-00002-of-00002.gguf: is missing"):
        open_weights(splits[0])


def test_a_split_with_another_name_cannot_find_its_siblings(splits):
    lonely = splits[0].rename(splits[0].with_name("lonely.gguf"))
    with pytest.raises(BadFile, match=r"lonely.gguf: is one of 2 splits"):
        open_weights(lonely)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (split(0, 2), "split.no is 0"),
        (split(2, 2), "split.no is 2"),
        (split(1, 3), "split.count is 3"),
        (split(1, 2, name="t0"), "'t0' is also in another split"),
        (file([], [tensor("t1", (1,))], bytes(4)), "split.count is 1"),
        (file([key("split.no", STRING, "1"), key("split.count", U16, 2)]), "split.no is '1'"),
    ],
    ids=["repeated", "beyond the count", "another count", "a tensor twice", "not a split", "no number"],
)
def test_splits_that_disagree_are_refused(splits, second, reason):
    splits[1].write_bytes(second)
    with pytest.raises(BadFile, match=reason):
        open_weights(splits[0])


def test_a_wrong_total_of_tensors_is_refused(splits):
    splits[0].write_bytes(split(0, 2, tensors=3))
    with pytest.raises(BadFile, match=r"hold 2 tensors; split.tensors.count is 3"):
        open_weights(splits[0])
