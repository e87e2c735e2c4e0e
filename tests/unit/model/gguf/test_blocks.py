"""What a header says about blocks: refused where it does not fit the tensors, cut where it does, or refused by name."""

from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from shortviz.errors import ModelError, PlanError
from shortviz.model.gguf.blocks import check_blocks, cut_keys, cut_tensors, marked_blocks
from shortviz.model.gguf.container import Gguf, Key, array_key, number_key, read_gguf, text_key
from shortviz.model.load import estimate
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from tests.support.ggufs import write_openelm, write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Gguf:
    """A llama of six blocks."""
    path = tmp_path_factory.mktemp("blocks") / "tiny.gguf"
    write_tiny(path)
    return check_blocks(read_gguf(path))


def without(source: Gguf, *removed: int) -> PrunePlan:
    return PrunePlan(num_layers=source.num_layers, removed=removed)


def of(source: Gguf, architecture: str, **keys: Key) -> Gguf:
    """Return a header of another architecture, with some keys of its own; `__` stands for a dot."""
    renamed = {name.replace("llama.", f"{architecture}."): key for name, key in source.keys.items()}
    own = {f"{architecture}.{name.replace('__', '.')}": key for name, key in keys.items()}
    return replace(source, keys=renamed | {"general.architecture": text_key(architecture)} | own)


def test_blocks_beyond_the_count_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "five.gguf"
    write_tiny(path, keys=lambda writer: writer.add_block_count(5))
    said = (
        r"holds blk.5.attn_k.weight and 8 more, and its llama.block_count says 5 blocks, 0-4: no field of its header "
        r"explains these tensors; set llama.block_count to 6"
    )
    with pytest.raises(ModelError, match=said):
        estimate(ModelRef(id=str(path)))


def test_a_block_without_tensors_is_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "seven.gguf"
    write_tiny(path, keys=lambda writer: writer.add_block_count(7))
    with pytest.raises(ModelError, match=r"holds no tensor of block 6, and its llama.block_count says 7 blocks, 0-6"):
        estimate(ModelRef(id=str(path)))


@pytest.mark.parametrize("name", ["attention.head_count_kv", "feed_forward_length", "attention.head_count"])
def test_an_array_of_another_length_is_refused_with_both_lengths(tmp_path: Path, name: str) -> None:
    path = tmp_path / "cut by another tool.gguf"
    write_tiny(path, keys=lambda writer: writer.add_array(f"llama.{name}", [2] * 8))
    said = rf"The array llama.{name} of the GGUF file .* has 8 entries, and the file 6 blocks: it was probably cut by a"
    with pytest.raises(ModelError, match=said):
        estimate(ModelRef(id=str(path)))


def test_a_very_long_array_is_refused_with_its_own_length(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    write_tiny(path, keys=lambda writer: writer.add_array("llama.feed_forward_length", [2] * 2000))
    with pytest.raises(ModelError, match="has 2000 entries, and the file 6 blocks"):
        estimate(ModelRef(id=str(path)))


def test_a_cut_changes_the_count_and_keeps_all_else_as_it_is(tiny: Gguf) -> None:
    plan = without(tiny, 1, 4)
    keys, notes = cut_keys(tiny, plan)
    assert notes == ()
    assert list(keys) == list(tiny.keys)
    assert {name for name in keys if keys[name] != tiny.keys[name]} == {"llama.block_count"}
    assert keys["llama.block_count"] == number_key(4)
    tensors = cut_tensors(tiny, plan)
    assert [name for name in tensors if name.endswith("attn_q.weight")] == [f"blk.{i}.attn_q.weight" for i in range(4)]
    assert [tensors[f"blk.{i}.attn_q.weight"].name for i in range(4)] == [
        f"blk.{i}.attn_q.weight" for i in (0, 2, 3, 5)
    ]
    assert tensors["token_embd.weight"].name == "token_embd.weight"


def test_every_array_of_one_value_a_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "openelm.gguf"
    write_openelm(path)
    source = check_blocks(read_gguf(path))
    keys, _ = cut_keys(source, without(source, 0, 3))
    assert keys["openelm.attention.head_count"].value == (2, 6, 2)
    assert keys["openelm.attention.head_count_kv"].value == (1, 3, 1)
    assert keys["openelm.feed_forward_length"].value == (96, 32, 64)
    assert keys["tokenizer.ggml.token_type"] == source.keys["tokenizer.ggml.token_type"]


def test_an_unknown_array_is_cut_and_told_where_it_is_as_long_as_the_model_and_refused_else(tiny: Gguf) -> None:
    long = of(tiny, "llama", something=array_key(range(6)))
    keys, notes = cut_keys(long, without(long, 0))
    assert keys["llama.something"].value == (1, 2, 3, 4, 5)
    assert notes == ("The array llama.something was cut too: it has as many entries as the model has layers.",)
    sections = of(tiny, "llama", rope__dimension_sections=array_key(range(6)))
    assert cut_keys(sections, without(sections, 0))[0]["llama.rope.dimension_sections"].value == tuple(range(6))
    short = of(tiny, "llama", something=array_key((1, 4)))
    with pytest.raises(PlanError, match=r"key llama.something is an array that this version does not know"):
        cut_keys(short, without(short, 0))
    texts = of(tiny, "llama", something=array_key(["dense", "sparse"] * 3))
    with pytest.raises(PlanError, match=r"key llama.something is an array that this version does not know"):
        cut_keys(texts, without(texts, 0))


SLIDING = "attention.sliding_window_pattern"


@pytest.mark.parametrize(
    ("architecture", "removed", "listed"),
    [
        ("gemma2", (0, 1), None),  # two of a rhythm of two: it goes on as before
        ("gemma2", (1,), (True, True, False, True, False)),
        ("gemma3", (5,), None),  # the only one that does not slide, and of five the rhythm of six says that all do
        ("gemma3", (1, 2), (True, True, True, False)),
        ("gpt-oss", (2, 3, 4, 5), None),
        ("gpt-oss", (0,), (False, True, False, True, False)),
    ],
)
def test_sliding_windows_are_listed_where_the_cut_breaks_their_rhythm(
    tiny: Gguf, architecture: str, removed: tuple[int, ...], listed: tuple[bool, ...] | None
) -> None:
    source = of(tiny, architecture)
    keys, notes = cut_keys(source, without(source, *removed))
    found = keys.get(f"{architecture}.{SLIDING}")
    assert (None if found is None else found.value) == listed
    assert bool(notes) == (listed is not None)
    cut = replace(source, keys=keys)
    before = marked_blocks(source)
    assert before is not None
    assert marked_blocks(cut) == tuple(slides for i, slides in enumerate(before) if i not in removed)


def test_a_stated_rhythm_and_a_list_count_before_the_familys_own(tiny: Gguf) -> None:
    by_three = of(tiny, "gemma3", attention__sliding_window_pattern=number_key(3))
    assert marked_blocks(by_three) == (True, True, False, True, True, False)
    keys, _ = cut_keys(by_three, without(by_three, 0))
    assert keys[f"gemma3.{SLIDING}"].value == (True, False, True, True, False)
    listed = of(tiny, "gemma3", attention__sliding_window_pattern=array_key([1, 0, 0, 1, 1, 0]))
    keys, notes = cut_keys(listed, without(listed, 0, 5))
    assert keys[f"gemma3.{SLIDING}"].value == (0, 0, 1, 1)
    assert notes == ()


def test_a_rhythm_that_cannot_be_listed_refuses_the_cuts_that_break_it(tiny: Gguf) -> None:
    source = of(tiny, "qwen35", full_attention_interval=number_key(2))
    assert cut_keys(source, without(source, 2, 3))[0]["qwen35.block_count"].value == 4
    with pytest.raises(PlanError, match=r"key qwen35.full_attention_interval makes one layer in 2 different, and the"):
        cut_keys(source, without(source, 2))


@pytest.mark.parametrize(
    ("key", "because"),
    [
        ("nextn_predict_layers", "predict further tokens"),
        ("attention.shared_kv_layers", "read keys and values of earlier ones"),
        ("embedding_length_per_layer_input", "packs the embeddings of all layers"),
    ],
)
def test_what_ties_blocks_together_is_refused_by_name(tiny: Gguf, key: str, because: str) -> None:
    source = of(tiny, "llama", **{key: number_key(1)})
    with pytest.raises(PlanError, match=rf"GGUF file: its key llama.{key} .*{because}.*; export the cut as a folder"):
        cut_keys(source, PrunePlan(num_layers=source.num_layers, removed=(1,)))


def test_an_unknown_architecture_is_refused(tiny: Gguf) -> None:
    source = of(tiny, "mystery")
    with pytest.raises(PlanError, match=r"in the architecture mystery is not known to this version"):
        cut_keys(source, without(source, 1))


def test_a_number_of_layers_that_means_another_attention_scale_is_refused(tiny: Gguf) -> None:
    large = of(
        tiny, "gemma3", block_count=number_key(62), embedding_length=number_key(5376),
        attention__key_length=number_key(128), attention__head_count=number_key(32),
    )  # fmt: skip
    with pytest.raises(PlanError, match=r"key gemma3.block_count of 62 means another attention scale to llama.cpp"):
        cut_keys(large, without(large, 1))


def test_dense_layers_at_the_beginning_are_counted_anew(tiny: Gguf) -> None:
    source = of(tiny, "llama", leading_dense_block_count=number_key(3))
    assert cut_keys(source, without(source, 1, 4))[0]["llama.leading_dense_block_count"].value == 2


def test_the_type_of_the_count_stays(tiny: Gguf) -> None:
    source = of(tiny, "llama", block_count=number_key(6, gguf.GGUFValueType.UINT64))
    assert cut_keys(source, without(source, 1))[0]["llama.block_count"] == number_key(5, gguf.GGUFValueType.UINT64)
