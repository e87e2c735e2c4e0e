"""Chats: messages as data sets spell them, and the text that a chat template makes of them."""

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from shortviz.errors import FieldError, TextError
from shortviz.records.text import TextSpec, WindowSpec
from shortviz.text.chats import Chat
from shortviz.text.sources import read_rows
from shortviz.text.tokens import make_windows, tokenize
from tests.support.families import tiny_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if loop.index0 and m.role == messages[loop.index0 - 1].role %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
MESSAGES = [{"role": "user", "content": "Up or down?"}, {"role": "assistant", "content": "Up, as ever."}]
AS_TEXT = "<s>[user]Up or down?[assistant]Up, as ever.</s>"


def with_template(template: str = TEMPLATE, bos: bool = True) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer(bos))
    tokenizer.chat_template = template
    return tokenizer


def spec(path: Path, rows: list[dict[str, Any]], **options: Any) -> TextSpec:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TextSpec(kind="file", value=str(path), **options)


SPELLINGS: dict[str, dict[str, Any]] = {
    "messages": {"messages": MESSAGES},
    "conversations": {
        "conversations": [{"from": "human", "value": "Up or down?"}, {"from": "GPT", "value": "Up, as ever."}]
    },
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Up or "}, "down?"]}, MESSAGES[1]]},
    "columns": {"messages": {"role": ["user", "assistant"], "content": ["Up or down?", "Up, as ever."]}},
    "json": {"messages": json.dumps(MESSAGES)},
    "nulls": {"messages": [message | {"tool_calls": None} for message in MESSAGES]},
}  # fmt: skip


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_chat_is_the_tokens_that_transformers_makes_of_it(tmp_path: Path, name: str, bos: bool) -> None:
    tokenizer = with_template(bos=bos)
    found = tokenize(spec(tmp_path / "a.jsonl", [SPELLINGS[name]] * 2), tokenizer)
    expected = tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    assert [row.tolist() for row in found.rows] == [expected] * 2
    assert expected.count(tokenizer.bos_token_id) == 1, "one BOS, the template's or the tokenizer's"
    column = next(iter(SPELLINGS[name]))
    assert found.info.source == f"file a.jsonl, column {column}"
    assert found.info.told == "read for want of a column text; chats written by the model's chat template"
    assert tokenizer.decode(expected) == AS_TEXT


def test_a_column_of_chats_may_be_named_and_a_column_of_text_comes_first(tmp_path: Path) -> None:
    rows = [{"text": "plain", "prompt": MESSAGES, "messages": MESSAGES}]
    assert read_rows(spec(tmp_path / "a.jsonl", rows)).rows == ("plain",)
    named = read_rows(spec(tmp_path / "a.jsonl", rows, key="prompt"))
    assert isinstance(named.rows[0], Chat)
    assert named.told == ()


def test_chats_of_a_parquet_file_are_read_as_those_of_lines(tmp_path: Path) -> None:
    pd.DataFrame({"messages": [MESSAGES, MESSAGES]}).to_parquet(tmp_path / "a.parquet")
    found = tokenize(TextSpec(kind="file", value=str(tmp_path / "a.parquet")), with_template())
    assert tiny_tokenizer().decode(found.rows[1]) == AS_TEXT


def test_windows_hold_the_chats_one_after_another_and_open_with_one_bos(tmp_path: Path) -> None:
    tokenizer = with_template()
    windows = make_windows(
        spec(tmp_path / "a.jsonl", [{"messages": MESSAGES}] * 3), WindowSpec(window=20, order="first"), tokenizer
    )
    one = tokenizer.apply_chat_template(MESSAGES, return_dict=False)
    text = (one * 3)[1:]
    assert windows.info.chats
    assert windows.tokens[:, 0].tolist() == [tokenizer.bos_token_id] * len(windows.tokens)
    assert windows.tokens[:, 1:].ravel().tolist() == text[: len(windows.tokens) * 19]


def test_parts_that_are_no_text_are_left_out_and_counted(tmp_path: Path) -> None:
    image = {"role": "user", "content": [{"type": "image", "url": "x"}, {"type": "text", "text": "Up or down?"}]}
    found = tokenize(spec(tmp_path / "a.jsonl", [{"messages": [image, MESSAGES[1]]}] * 2), with_template())
    assert found.info.told.endswith("; 2 parts of chats that are no text left out")
    assert tiny_tokenizer().decode(found.rows[0]) == AS_TEXT


def test_off_takes_the_contents_alone_as_plain_text(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(bos=True)
    messages = [{"role": "user", "content": "Say </s>"}, MESSAGES[1]]
    found = tokenize(spec(tmp_path / "a.jsonl", [{"messages": messages}], chat_template="off"), tokenizer)
    assert tokenizer.decode(found.rows[0]) == "<s>Say </s>\n\nUp, as ever."
    assert tokenizer.eos_token_id not in found.rows[0]
    assert "contents of chats without a chat template; 1 spelling of special tokens read as text" in found.info.told


def test_a_template_of_a_file_is_used_and_named(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    text = spec(tmp_path / "a.jsonl", [{"messages": MESSAGES}], chat_template=str(template))
    found = tokenize(text, with_template(bos=False))
    assert tiny_tokenizer().decode(found.rows[0]) == "user: Up or down?\nassistant: Up, as ever.\n"
    assert "chats written by the chat template mine.jinja" in found.info.told
    assert "--chat-template mine.jinja" in found.info.options
    with pytest.raises(TextError, match=r"none\.jinja cannot be read \(No such file or directory\); give a Jinja file"):
        read_rows(spec(tmp_path / "a.jsonl", [{"messages": MESSAGES}], chat_template=str(tmp_path / "none.jinja")))


def test_a_model_without_a_template_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(FieldError) as caught:
        tokenize(spec(tmp_path / "a.jsonl", [{"messages": MESSAGES}]), tiny_tokenizer())
    assert str(caught.value) == (
        "chat_template is needed: the file a.jsonl, column messages holds chats, and this model's tokenizer has no "
        "chat template of its own; give a Jinja file, or off for the contents alone."
    )


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        (
            [MESSAGES[0], MESSAGES[0]],
            "The chat template refuses ROW (Conversation roles must alternate); mend",
        ),
        ([{"from": "alien", "value": "a"}], "Message 0 (from 0) in ROW is from 'alien', which is none of human, user"),
        (
            [MESSAGES[0], {"content": "a", "who": 1}],
            "Message 1 (from 0) in ROW has no role; it has: content, who",
        ),
        ([MESSAGES[0], "a"], "Message 1 (from 0) in ROW is str, not an object of role and content; mend the row"),
        ([MESSAGES[0], {"role": "user", "text": "a"}], "Message 1 (from 0) in ROW has no content; it has: role, text"),
        ([{"from": "human", "text": "a"}], "Message 0 (from 0) in ROW has no content; it has: from, text; mend"),
        (
            {"role": ["user", "assistant"], "content": ["a"]},
            "The lists of a chat in ROW have different lengths (2 of role, 1 of content); mend or remove the row.",
        ),
        ("Up or down?", "Column 'messages' of PATH holds text in line 2, not a chat; name the column to read."),
        ([{"role": "user", "content": 7}], "Message 0 (from 0) in ROW holds int as its content, not text; mend"),
        (["a", "b"], "Column 'messages' of PATH holds list in line 2, not text; choose a column of text, or of chats"),
    ],
)
def test_a_chat_that_cannot_be_written_is_refused_by_its_row(tmp_path: Path, messages: Any, sentence: str) -> None:
    text = spec(tmp_path / "a.jsonl", [{"messages": MESSAGES}, {"messages": messages}])
    with pytest.raises(TextError) as caught:
        tokenize(text, with_template())
    expected = sentence.replace("ROW", "line 2 of PATH").replace("PATH", str(tmp_path / "a.jsonl"))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_shows_parts_only_gets_parts(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% for part in m.content %}{{ part.text }}|{% endfor %}{% endfor %}"
    found = tokenize(spec(tmp_path / "a.jsonl", [{"messages": MESSAGES}]), with_template(template, bos=False))
    assert tiny_tokenizer().decode(found.rows[0]) == "Up or down?|Up, as ever.|"


def test_a_template_that_asks_for_the_date_gets_the_same_every_day(tmp_path: Path) -> None:
    template = "{{ strftime_now('%d %b %Y') }}: {{ messages[0].content }}"
    found = tokenize(spec(tmp_path / "a.jsonl", [{"messages": MESSAGES}]), with_template(template, bos=False))
    assert tiny_tokenizer().decode(found.rows[0]) == "26 Jul 2024: Up or down?"
    assert "its date set to 2024-07-26" in found.info.told


def test_what_messages_spell_is_parsed_and_counted_and_the_templates_own_is_not_counted(tmp_path: Path) -> None:
    spelled = [{"role": "user", "content": "Is </s> the end?"}, MESSAGES[1]]
    text = spec(tmp_path / "a.jsonl", [{"messages": spelled}])
    tokenizer = with_template()
    found = tokenize(text, tokenizer)
    assert found.rows[0].tolist() == tokenizer.apply_chat_template(spelled, return_dict=False)
    assert found.rows[0].tolist().count(tokenizer.eos_token_id) == 2
    assert found.info.told.endswith("; 1 spelling of special tokens parsed as tokens")


def test_half_a_character_in_a_message_is_replaced_and_empty_chats_are_empty_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "\\ud83d!"}]}\n{"messages": []}\n{"messages": null}\n')
    rows = read_rows(TextSpec(kind="file", value=str(path)))
    assert isinstance(rows.rows[0], Chat)
    assert (rows.rows[0].contents, rows.rows[1:]) == ("\ufffd!", ("", ""))
    assert rows.told[-1] == "1 half character replaced by U+FFFD"
