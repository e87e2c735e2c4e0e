"""The tokenizer of a folder that has sentencepiece's own file alone."""

import json
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import PreTrainedConfig

from shortviz.errors import ModelError
from shortviz.model.load import load
from shortviz.model.tokenizer import read_tokenizer
from shortviz.model.unread import differing_files
from shortviz.records.model import ModelRef
from tests.support.families import build_tiny, tiny_config, tiny_tokenizer

SENTENCES = (
    "The river runs past the old mill and the children play.",
    "Two and two are four, three and three are six.",
    "A cat sat on the mat; a dog lay on the log.",
)


def with_vocabulary(size: int) -> PreTrainedConfig:
    config = tiny_config("llama")
    config.vocab_size = size
    return config


def train(folder: Path, **options: object) -> SentencePieceProcessor:
    """Train a tiny sentencepiece model into `tokenizer.model`, by default as Llama's was, and return it."""
    text = folder / "text"
    text.write_text("\n".join(SENTENCES * 30))
    llama = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "vocab_size": 340}
    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "remove_extra_whitespaces": False, "minloglevel": 2}
    SentencePieceTrainer.train(input=str(text), model_prefix=str(folder / "tokenizer"), **(llama | ids | options))
    (folder / "tokenizer.vocab").unlink()
    text.unlink()
    return SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_the_ids_are_sentencepieces_own_with_the_bos_first(tmp_path: Path) -> None:
    own = train(tmp_path)
    build_tiny("llama", config=with_vocabulary(340)).save_pretrained(tmp_path)
    handle = load(ModelRef(id=str(tmp_path)))
    for text in (*SENTENCES, "  two  spaces\nand a line", "ü 漢", "x"):
        assert handle.tokenizer(text)["input_ids"] == [own.bos_id(), *own.encode(text)]
    assert (
        handle.tokenizer.decode(handle.tokenizer(SENTENCES[0])["input_ids"], skip_special_tokens=True) == SENTENCES[0]
    )


def test_no_bos_is_put_in_where_the_file_has_none(tmp_path: Path) -> None:
    own = train(tmp_path, bos_id=-1, eos_id=1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert read_tokenizer("m", tmp_path)(SENTENCES[0])["input_ids"] == own.encode(SENTENCES[0])


@pytest.mark.parametrize("space_in_front", [True, False])
@pytest.mark.parametrize("named", ["LlamaTokenizer", "PreTrainedTokenizerFast"])
def test_a_class_that_would_give_other_ids_gives_sentencepieces_too_and_keeps_its_settings(
    tmp_path: Path, named: str, space_in_front: bool
) -> None:
    own = train(tmp_path, add_dummy_prefix=space_in_front)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    settings = {"tokenizer_class": named, "add_bos_token": False, "chat_template": "A", "model_max_length": 77}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = read_tokenizer("m", tmp_path)
    for text in (*SENTENCES, "  two  spaces", " x"):
        assert found(text)["input_ids"] == own.encode(text)
    assert (found.chat_template, found.model_max_length, found.bos_token) == ("A", 77, "<s>")


def test_a_class_that_reads_the_file_otherwise_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    with pytest.raises(ModelError, match=r"tokenizer\.model alone, .* put its tokenizer\.json beside it"):
        read_tokenizer("m", tmp_path)


@pytest.mark.parametrize("options", [{"normalization_rule_name": "nmt_nfkc_cf"}, {"remove_extra_whitespaces": True}])
def test_a_file_that_would_be_read_otherwise_is_refused(tmp_path: Path, options: dict[str, object]) -> None:
    train(tmp_path, **options)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match=r"tokenizer\.model alone, .* put its tokenizer\.json beside it"):
        read_tokenizer("m", tmp_path)


def test_a_broken_file_is_one_sentence(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer.model").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="The tokenizer of m cannot be read"):
        read_tokenizer("m", tmp_path)


def test_a_cut_of_it_is_exported_with_that_file(tmp_path: Path) -> None:
    from shortviz.cli.main import app
    from shortviz.cli.session import run_command

    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    own = train(source)
    build_tiny("llama", config=with_vocabulary(340)).save_pretrained(source)
    assert run_command(app, ["prune", str(source), "--start", "1", "--n", "1", "--out", str(out)]) == 0
    assert read_tokenizer("cut", out)(SENTENCES[0])["input_ids"] == [own.bos_id(), *own.encode(SENTENCES[0])]


def test_two_tokenizers_that_disagree_are_told_and_a_file_that_is_no_sentencepiece_is_none(tmp_path: Path) -> None:
    train(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (told,) = differing_files("m", tmp_path)
    assert told.startswith("tokenizer.json and tokenizer.model of m disagree (")
    assert told.endswith("tokenizer.json is read.")
    (tmp_path / "tokenizer.model").write_bytes(b"\x00" * 100)
    assert differing_files("m", tmp_path) == ()
