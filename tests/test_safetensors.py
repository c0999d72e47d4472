"""Reading safetensors checkpoints: what the reader returns, and how it refuses files that break the rules."""

import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from puna.core.errors import BadFile, NotFound
from puna.core.tensor.decode import decode_tensor
from puna.core.tensor.weights import LARGEST_SIDE_FILE, open_weights

FIXTURES = Path(__file__).parent / "fixtures"
INDEX = "model.safetensors.index.json"


def file(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2,), start=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a config and one good file."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["Some"]}')
    save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, folder / "model.safetensors")
    return folder


def values(source, name):
    info = source.tensors[name]
    return decode_tensor(source.raw(name), info.format, info.shape)


def shard(folder, index, **shards):
    """Replace the checkpoint's one file by several, named by an index unless that is None."""
    (folder / "model.safetensors").unlink()
    for name, tensors in shards.items():
        save_file(tensors, folder / f"{name}.safetensors")
    if index is not None:
        (folder / INDEX).write_text(json.dumps({"weight_map": index}))


def test_a_checkpoint_gives_its_tensors_its_config_and_the_files_beside_it(checkpoint):
    (checkpoint / "tokenizer.json").write_bytes(b"{}")
    source = open_weights(checkpoint)
    assert source.kind == "safetensors"
    assert source.metadata == {"architectures": ["Some"]}
    info = source.tensors["w"]
    assert (info.name, info.shape, info.format.name, info.nbytes) == ("w", (2, 3), "F32", 24)
    np.testing.assert_array_equal(values(source, "w"), [[0, 1, 2], [3, 4, 5]])
    assert source.side_file("tokenizer.json") == b"{}"
    assert source.side_file("merges.txt") is None


@pytest.mark.parametrize("variant", ["llama-spm", "qwen3"])
def test_a_model_reads_as_the_safetensors_library_reads_it(variant):
    source = open_weights(FIXTURES / variant / "hf")
    expected = load_file(FIXTURES / variant / "hf" / "model.safetensors")
    assert source.tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(values(source, name), array.astype(np.float32))


def test_tensors_are_read_only_views_of_the_file(checkpoint):
    raw = open_weights(checkpoint).raw("w")
    assert raw.shape == (2, 12)
    assert not raw.flags.writeable and not raw.flags.owndata


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"])
def test_every_dtype_numpy_shares_with_the_format_is_read(checkpoint, dtype):
    array = np.array([[0, 1], [1, 100]]).astype(dtype)
    save_file({"x": array}, checkpoint / "model.safetensors")
    np.testing.assert_array_equal(values(open_weights(checkpoint), "x"), array.astype(np.float32))


def test_scalars_and_tensors_of_many_dimensions_are_read(checkpoint):
    arrays = {"one": np.array(3, np.float32), "five": np.ones((1, 2, 3, 4, 5), np.float16)}
    save_file(arrays, checkpoint / "model.safetensors")
    source = open_weights(checkpoint)
    assert values(source, "one").shape == ()
    assert source.raw("five").shape == (24, 10)


def test_shards_are_joined_by_their_index(checkpoint):
    one, two = np.ones(3, np.float32), np.zeros(4, np.float16)
    shard(checkpoint, {"b": "y.safetensors", "a": "x.safetensors"}, x={"a": one}, y={"b": two})
    source = open_weights(checkpoint)
    assert list(source.tensors) == ["b", "a"]
    np.testing.assert_array_equal(values(source, "a"), one)


def test_shards_without_an_index_are_joined(checkpoint):
    shard(checkpoint, None, x={"a": np.ones(3, np.float32)}, y={"b": np.ones(3, np.float32)})
    assert set(open_weights(checkpoint).tensors) == {"a", "b"}


def test_a_tensor_in_two_shards_is_refused(checkpoint):
    shard(checkpoint, None, x={"a": np.ones(3, np.float32)}, y={"a": np.ones(3, np.float32)})
    with pytest.raises(BadFile, match=r"y.safetensors: tensor 'a' is also in another file"):
        open_weights(checkpoint)


def test_a_store_opens_a_checkpoint_from_blobs(checkpoint, tmp_path):
    blobs = {}
    for number, name in enumerate(["config.json", "model.safetensors"]):
        blobs[name] = (checkpoint / name).rename(tmp_path / f"sha256-{number}")
    (tmp_path / "sha256-9").write_bytes(b"pooling")
    source = open_weights({**blobs, "1_Pooling/config.json": tmp_path / "sha256-9"})
    assert list(source.tensors) == ["w"]
    assert source.metadata == {"architectures": ["Some"]}
    assert source.side_file("1_Pooling/config.json") == b"pooling"


def test_safetensors_win_over_a_gguf_file_made_from_them(checkpoint):
    (checkpoint / "model.gguf").write_bytes(b"GGUF")
    assert open_weights(checkpoint).kind == "safetensors"


def test_an_adapter_has_its_own_config(checkpoint):
    (checkpoint / "config.json").rename(checkpoint / "adapter_config.json")
    assert open_weights(checkpoint).metadata == {"architectures": ["Some"]}


def test_a_config_may_hold_infinity_as_python_writes_it(checkpoint):
    (checkpoint / "config.json").write_text('{"limit": [0.0, Infinity]}')
    assert open_weights(checkpoint).metadata == {"limit": [0.0, float("inf")]}


def test_arrays_outlive_a_closed_source(checkpoint):
    source = open_weights(checkpoint)
    raw = source.raw("w")
    source.close()
    del source
    assert raw.view("<f4").tolist() == [[0, 1, 2], [3, 4, 5]]


DEEP = b"[" * 100_000
REFUSED = {
    "nothing": (b"", "empty"),
    "three bytes": (b"\1\0\0", "truncated"),
    "a header longer than the file": (file({}, length=2**63), "truncated"),
    "a header cut off": (file({"a": entry()})[:40], "truncated"),
    "no JSON": (file(b"{not json"), "not valid"),
    "JSON that is a list": (file(b"[]"), "not valid"),
    "JSON as deep as a well": (file(b'{"a":' + DEEP), "not valid"),
    "bytes that are not UTF-8": (file(b'{"\xff\xfe": 1}'), "not valid"),
    "an entry without a shape": (file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)), "shape"),
    "a shape of strings": (file({"a": entry(shape=["2"])}, bytes(8)), "not valid"),
    "three offsets": (file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, bytes(8)), "not valid"),
    "a float for an offset": (file({"a": entry(end=8.5)}, bytes(8)), "not valid"),
    "an unknown dtype": (file({"a": entry(dtype="F8_E4M3")}, bytes(8)), "F8_E4M3"),
    "a GGUF type for a dtype": (file({"a": entry(dtype="Q4_0", shape=[32], end=18)}, bytes(18)), "Q4_0"),
    "a negative dimension": (file({"a": entry(shape=[-1, -2])}, bytes(8)), "empty"),
    "a dimension of zero": (file({"a": entry(shape=[0], end=0)}), "empty"),
    "nine dimensions": (file({"a": entry(shape=[1] * 8 + [2])}, bytes(8)), "9 dimensions"),
    "a negative offset": (file({"a": entry(start=-8, end=0)}, bytes(8)), "-8"),
    "offsets the wrong way round": (file({"a": entry(start=8, end=0)}, bytes(8)), "8 to 0"),
    "a size that is not the shape's": (file({"a": entry(shape=[3])}, bytes(8)), "takes 12 bytes"),
    "a shape that overflows": (file({"a": entry(shape=[2**62, 2**62])}, bytes(8)), "bytes 0 to 8"),
    "offsets beyond the file": (file({"a": entry(start=8, end=16)}, bytes(8)), "truncated"),
    "data that no tensor takes": (file({"a": entry()}, bytes(12)), "holds 12 bytes"),
    "missing data": (file({"a": entry()}, bytes(4)), "holds 4 bytes"),
    "a hole": (file({"a": entry(), "b": entry(start=12, end=20)}, bytes(16)), "truncated"),
    "an overlap": (file({"a": entry(), "b": entry(start=4, end=12)}, bytes(16)), "inside 'a'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_hostile_file_is_refused_with_its_reason_and_little_memory(checkpoint, case):
    content, reason = REFUSED[case]
    (checkpoint / "model.safetensors").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(BadFile, match=reason) as refused:
            open_weights(checkpoint)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "model.safetensors" in str(refused.value)
    assert peak < len(content) + (1 << 20)


def test_a_header_beyond_the_limit_is_refused_unread(checkpoint):
    with (checkpoint / "model.safetensors").open("wb") as huge:
        huge.write(struct.pack("<Q", 200_000_000))
        huge.truncate(300_000_000)  # sparse
    with pytest.raises(BadFile, match="the limit is 100000000"):
        open_weights(checkpoint)


def test_every_truncation_is_refused(checkpoint):
    content = save({"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float16)})
    for length in range(len(content)):
        (checkpoint / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(BadFile):
            open_weights(checkpoint)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"a": "../x.safetensors"}, "'../x.safetensors', which is not one"),
        ({"a": "/etc/passwd"}, "'/etc/passwd', which is not one"),
        ({"a": "none.safetensors"}, "'none.safetensors', which is not one"),
        ({"a": "x.safetensors", "c": "x.safetensors"}, "lacks the tensor 'c'"),
        ({"a": 1}, "index"),
        ([], "index"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(checkpoint, index, reason):
    save_file({"a": np.ones(3, np.float32)}, checkpoint.parent / "x.safetensors")
    shard(checkpoint, index, x={"a": np.ones(3, np.float32)})
    with pytest.raises(BadFile, match=reason):
        open_weights(checkpoint)


def test_a_link_that_leads_out_of_the_folder_is_refused(checkpoint, tmp_path):
    outside = (checkpoint / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (checkpoint / "model.safetensors").symlink_to(outside)
    with pytest.raises(BadFile, match=r"model.safetensors: is a link that leads out"):
        open_weights(checkpoint)


def test_a_link_within_the_folder_is_followed(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "blob")
    (checkpoint / "model.safetensors").symlink_to("blob")
    assert list(open_weights(checkpoint).tensors) == ["w"]


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", "", ".", "none/../config.json", "a\0b"])
def test_side_files_are_only_those_in_the_folder(checkpoint, tmp_path, name):
    (tmp_path / "outside.txt").write_text("secret")
    assert open_weights(checkpoint).side_file(name) is None


def test_a_side_file_beyond_the_limit_is_refused(checkpoint):
    with (checkpoint / "tokenizer.json").open("wb") as huge:
        huge.truncate(LARGEST_SIDE_FILE + 1)  # sparse
    with pytest.raises(BadFile, match=r"tokenizer.json: is larger than"):
        open_weights(checkpoint).side_file("tokenizer.json")


def test_a_pipe_beside_the_weights_is_not_a_file(checkpoint):
    os.mkfifo(checkpoint / "tokenizer.json")
    assert open_weights(checkpoint).side_file("tokenizer.json") is None


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"3", b"\xff", DEEP])
def test_a_config_that_is_no_object_is_refused(checkpoint, config):
    (checkpoint / "config.json").write_bytes(config)
    with pytest.raises(BadFile, match=r"config.json"):
        open_weights(checkpoint)


def test_a_checkpoint_without_a_config_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()
    with pytest.raises(BadFile, match=r"config.json"):
        open_weights(checkpoint)


def test_a_file_of_the_checkpoint_alone_is_refused_with_advice(checkpoint):
    with pytest.raises(BadFile, match="name the folder"):
        open_weights(checkpoint / "model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"])
def test_a_pickle_checkpoint_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4")
    (tmp_path / "config.json").write_text("{}")
    for files in (tmp_path, tmp_path / name, {name: tmp_path / name}):
        with pytest.raises(BadFile, match=f"only GGUF and safetensors are read: {name}"):
            open_weights(files)


def test_an_empty_folder_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(BadFile, match="no weights"):
        open_weights(tmp_path)
    with pytest.raises(NotFound, match="nowhere"):
        open_weights(tmp_path / "nowhere")
