"""The GGUF container: what is read is what gguf's own reader reads, and what is written is the same file again."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from shortviz.errors import ModelError
from shortviz.model.gguf.container import array_key, number_key, read_gguf, text_key, write_gguf, written_bytes
from tests.support.ggufs import write_tiny


@pytest.mark.parametrize("alignment", [None, 64])
def test_a_file_written_from_what_was_read_is_the_same_file(tmp_path: Path, alignment: int | None) -> None:
    path, again = tmp_path / "tiny.gguf", tmp_path / "again.gguf"
    write_tiny(path, alignment=alignment)

    source = read_gguf(path)
    write_gguf(again, source, source.keys, source.tensors)

    assert again.read_bytes() == path.read_bytes()
    assert written_bytes(source, source.keys, source.tensors) == path.stat().st_size
    assert {tensor.start % (alignment or 32) for tensor in source.tensors} == {0}


def test_keys_and_tensors_are_those_that_the_gguf_package_reads(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, "lfm2")
    theirs, ours = gguf.GGUFReader(path), read_gguf(path)

    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.keys) == list(fields)
    for name, key in ours.keys.items():
        if key.value is not None:
            found = fields[name].contents()
            assert (list(key.value) if key.is_array else key.value) == found, name
    assert [(t.name, t.shape, t.kind, t.start, t.num_bytes) for t in ours.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]


def test_keys_of_our_own_are_read_back(tmp_path: Path) -> None:
    path, again = tmp_path / "tiny.gguf", tmp_path / "again.gguf"
    write_tiny(path)
    source = read_gguf(path)
    own = {
        "a": number_key(7),
        "b": text_key("é"),
        "c": array_key((1, 2)),
        "d": array_key(()),
        "e": array_key(["x", "yz"]),
    }

    write_gguf(again, source, source.keys | own, source.tensors)

    fields = gguf.GGUFReader(again).fields
    assert [fields[name].contents() for name in "abcde"] == [7, "é", [1, 2], [], ["x", "yz"]]


def test_all_parts_of_a_split_file_are_read_whichever_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_tiny(whole)
    write_tiny(tmp_path / "tiny.gguf", parts=3)
    names = sorted(path.name for path in tmp_path.glob("tiny-*"))
    assert names == [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]

    source = read_gguf(tmp_path / names[1])
    joined = tmp_path / "joined.gguf"
    write_gguf(joined, source, source.keys, source.tensors)

    assert source.path.name == names[0]
    assert not [name for name in source.keys if name.startswith("split.")]
    expected, found = read_gguf(whole), read_gguf(joined)
    assert found.keys == expected.keys
    for mine, theirs in zip(found.tensors, expected.tensors, strict=True):
        assert mine.name == theirs.name
        assert b"".join(mine.pieces()) == b"".join(theirs.pieces())

    (tmp_path / names[2]).unlink()
    with pytest.raises(ModelError, match=r"is one of 3 files of a model, and tiny-00003-of-00003.gguf is not beside"):
        read_gguf(tmp_path / names[0])


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.gguf", parts=2)
    renamed = (tmp_path / "tiny-00001-of-00002.gguf").rename(tmp_path / "first.gguf")
    with pytest.raises(
        ModelError, match=r"has a split.count of 2, and by its name .* that is 1; give the parts of one"
    ):
        read_gguf(renamed)


def test_parts_of_two_splits_or_in_another_order_are_refused(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.gguf", parts=2)
    write_tiny(tmp_path / "three.gguf", parts=3)
    first, second = (tmp_path / f"tiny-0000{number}-of-00002.gguf" for number in (1, 2))
    (tmp_path / "three-00002-of-00003.gguf").replace(second)
    with pytest.raises(
        ModelError, match=r"tiny-00001-of-00002.gguf has a split.tensors.count of 57, and .* that is 48"
    ):
        read_gguf(first)
    first.replace(second)
    (tmp_path / "three-00001-of-00003.gguf").replace(first)
    with pytest.raises(ModelError, match=r"tiny-00001-of-00002.gguf has a split.count of 3, and .* that is 2"):
        read_gguf(first)


def test_a_joined_file_is_read_whatever_it_says_of_the_parts_it_came_from(tmp_path: Path) -> None:
    """llama.cpp's own tool joins parts and leaves the keys, with a count of 0."""
    path = tmp_path / "tiny.gguf"
    write_tiny(path, keys=lambda w: (w.add_uint16("split.no", 0), w.add_uint16("split.count", 0)))
    assert len(read_gguf(path).tensors) == 57


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, keys=lambda w: (w.add_uint32("llama.block_cound", 4),))
    changed(path, b"llama.block_cound", b"llama.block_count")
    with pytest.raises(ModelError, match=r"holds two keys called llama.block_count; fetch it again"):
        read_gguf(path)


def test_a_big_endian_file_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x", np.zeros(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ModelError, match=r"has the byte order of big-endian machines; versions 2 and 3 can be read, in"
    ):
        read_gguf(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(ModelError, match=r"has version 1; versions 2 and 3 can be read"):
        read_gguf(path)


def changed(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    return path


def info(name: str, shape: tuple[int, ...], kind: int) -> bytes:
    return name.encode() + struct.pack(f"<I{len(shape)}QI", len(shape), *shape, kind)


def test_a_tensor_of_an_unknown_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path)
    name, shape = "blk.1.ffn_down.weight", (96, 64)
    changed(path, info(name, shape, 8), info(name, shape, 99))
    with pytest.raises(ModelError, match=r"The tensor blk.1.ffn_down.weight of .* is of type 99, which this version"):
        read_gguf(path)


def test_rows_that_no_block_divides_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path)
    name = "blk.1.ffn_down.weight"
    changed(path, info(name, (96, 64), 8), info(name, (95, 64), 8))
    with pytest.raises(ModelError, match=r"blk.1.ffn_down.weight of .* has rows of 95, no multiple of 32"):
        read_gguf(path)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path)
    changed(path, info("blk.1.attn_k.weight", (64, 32), 8), info("blk.0.attn_k.weight", (64, 32), 8))
    with pytest.raises(ModelError, match=r"holds two tensors called blk.0.attn_k.weight"):
        read_gguf(path)


def test_two_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, keys=lambda writer: (writer.add_uint32("my.key.1", 1), writer.add_uint32("my.key.2", 2)))
    changed(path, b"my.key.2", b"my.key.1")
    with pytest.raises(ModelError, match=r"holds two keys called my\.key\.1; fetch it again"):
        read_gguf(path)


def test_an_alignment_that_is_no_power_of_two_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny(path, alignment=64)
    key = b"general.alignment" + struct.pack("<I", 4)
    changed(path, key + struct.pack("<I", 64), key + struct.pack("<I", 48))
    with pytest.raises(ModelError, match=r"has a general.alignment of 48, no power of two"):
        read_gguf(path)
