"""Text as tokens: rows for distances, windows for losses, with or without BOS, and a fingerprint of what was read.

No torch: the tokenizer is handed in.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from shortviz.errors import TextError
from shortviz.records.formatting import counted
from shortviz.records.text import Bos, TextInfo, TextSpec, Tokens, TokenSet, WindowSet, WindowSpec, text_options
from shortviz.text.chats import Chat, write_chats
from shortviz.text.sources import DEFAULT_ROWS, Text, TextRows, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DEFAULT_CALIBRATION = TextSpec(kind="builtin", value="python-reference", limit=64, max_length=256)
"""What distances are averaged over unless other text is chosen."""
DEFAULT_EVALUATION = TextSpec(kind="builtin", value="passages")
"""What losses are scored on unless other text is chosen: no row of the default calibration set is in it."""


def tokenize(spec: Text, tokenizer: "PreTrainedTokenizerBase") -> TokenSet:
    """Return the text's rows as token ids, each of at most `max_length` tokens of its spec, BOS included.

    Longer ones are cut into several, each opened alike, or truncated, as the spec says; what is left out is told. Rows
    shorter than 2 tokens, or without any text, are left out and counted in `info.skipped`.

    Raises:
        TextError: the text cannot be read, every row is too short, or the BOS policy does not fit the tokenizer.
        ResourceError: a data set cannot be reached.
    """
    text = read_rows(spec)
    found = encode(text, tokenizer)
    prefix, meaning, room = _opening(text.spec.bos, "row length", text.spec.max_length, tokenizer)
    places, every = _places([*map(len, found.ids)], room, max(2 - len(prefix), 1), text.spec)
    rows = [_row(prefix, found.ids[i][at : at + room]) for i, at in places]
    kept = [at for at, row in enumerate(rows) if len(row) >= max(2, len(prefix) + 1)]
    long_enough = tuple(rows[at] for at in kept)
    if not long_enough:
        raise TextError(
            f"{'All' if len(rows) > 1 else 'The'} {counted(len(rows), 'row')} of the {text.source} "
            f"{'are' if len(rows) > 1 else 'is'} shorter than 2 tokens; give text of at least a few words."
        )
    info = TextInfo(
        source=text.source,
        rows=len(long_enough),
        tokens=sum(len(row) for row in long_enough),
        fingerprint=fingerprint(long_enough),
        skipped=len(rows) - len(long_enough),
        bos=meaning,
        max_length=text.spec.max_length,
        options=text_options(text.spec),
        told="; ".join(filter(None, (found.told, _told_long(text.spec, found.ids, places, every, room)))),
        chats=found.chats,
    )
    between = () if found.chats else tuple(_text_ids([_BETWEEN], tokenizer, parsed=False)[0][0])
    continued = frozenset(new for new, old in enumerate(kept) if places[old][1])
    return TokenSet(rows=long_enough, info=info, opening=prefix, between=between, continued=continued)


def _places(lengths: Sequence[int], room: int, least: int, spec: TextSpec) -> tuple[list[tuple[int, int]], int]:
    """Return (text and first token of each row, in the order of the texts; how many rows there were to choose from).

    Where not all fit, the beginnings of the texts come first, then what follows them, and so on: as many texts as can.
    """
    every = [(0, i) for i in range(len(lengths))]
    if spec.cuts:
        every += sorted((at, i) for i, n in enumerate(lengths) for at in range(room, n - least + 1, room))
    most = spec.limit if spec.kind != "dataset" else spec.limit or DEFAULT_ROWS
    return sorted((i, at) for at, i in every[:most]), len(every)


_TOKEN_CHARACTERS: Final = 4
"""Characters that an estimate takes for a token."""
COUNTED_CHARACTERS: Final = 2_000_000
"""Text up to which tokens are counted while somebody waits: a second or two."""


def count_rows(spec: TextSpec, tokenizer: "PreTrainedTokenizerBase | None") -> tuple[str, str]:
    """Return (how many rows and tokens a text becomes, what becomes of long ones), for people.

    Without a tokenizer, or of very long text, both numbers are estimated, which is said. Raises as `tokenize`.
    """
    text = read_rows(spec if spec.cuts else replace(spec, long_rows="truncate"))
    characters = [len(row.contents if isinstance(row, Chat) else row) for row in text.rows]
    if tokenizer is not None and sum(characters) <= COUNTED_CHARACTERS:
        info = tokenize(text, tokenizer).info
        return f"{counted(info.rows, 'row')}, {counted(info.tokens, 'token')}", info.told
    lengths, room = [-(-number // _TOKEN_CHARACTERS) for number in characters], text.spec.max_length
    places, every = _places(lengths, room, 2, text.spec)
    taken, there = sum(min(lengths[i] - at, room) for i, at in places), sum(lengths)
    words = f"about {counted(len(places), 'row')}, {counted(taken, 'token')}"
    rows = f"{len(places):,} of {every:,} rows, " if len(places) < every else ""
    left = f"about {rows}{taken:,} of {there:,} tokens; " if taken < there else ""
    why = "the text is long" if tokenizer is not None else "load a model to count them"
    return words, f"{left}estimated at {_TOKEN_CHARACTERS} characters a token: {why}"


def _told_long(
    spec: TextSpec, ids: Sequence[Sequence[int]], places: Sequence[tuple[int, int]], every: int, room: int
) -> str:
    """Return what became of text that is longer than a row, for people; "" where none is, or a built-in text is."""
    longer = sum(len(one) > room for one in ids)
    if not longer or (spec.kind == "builtin" and spec.long_rows == "auto"):
        return ""
    taken, there = sum(len(ids[i][at : at + room]) for i, at in places), sum(map(len, ids))
    words = f"{counted(longer, 'text')} longer than a row {'cut into rows' if spec.cuts else 'truncated'}"
    rows = f"{len(places):,} of {every:,} rows, " if len(places) < every else ""
    return f"{words}: {rows}{taken:,} of {there:,} tokens" if taken < there else words


def make_windows(spec: Text, windows: WindowSpec, tokenizer: "PreTrainedTokenizerBase") -> WindowSet:
    """Return evaluation windows of exactly `windows.window` tokens, without overlap, in the order of their spec.

    The rows are joined by a blank line and tokenised once. With BOS a window is the BOS and window - 1 tokens of text;
    the tokenizer's own BOS at the start of the text is not counted as text. Fewer windows than asked for are
    returned where the text is too short for them; a remainder shorter than a window is left out. Of one text fewer
    windows are the first of more, in either order.

    Raises:
        TextError: the text cannot be read, is shorter than one window, or the BOS policy does not fit the tokenizer.
        ResourceError: a data set cannot be reached.
    """
    text = read_rows(spec)
    found = encode(text, tokenizer, joined=True)
    (ids,) = found.ids
    prefix, meaning, room = _opening(text.spec.bos, "window", windows.window, tokenizer)
    total = len(ids) // room
    if total < 1:
        advice = f"choose a window of at most {len(ids) + len(prefix)} tokens or" if len(ids) > 1 else "give"
        raise TextError(
            f"The {text.source} has {len(ids)} tokens, fewer than one window of {windows.window} needs ({room}); "
            f"{advice} more text."
        )
    chosen = (spread_order(total) if windows.order == "spread" else range(total))[: windows.windows]
    tokens = cut_windows(np.asarray(ids, dtype=np.int64), prefix, windows.window)[list(chosen)]
    tokens.setflags(write=False)
    info = TextInfo(
        source=text.source,
        rows=len(tokens),
        tokens=tokens.size,
        fingerprint=fingerprint(tokens),
        bos=meaning,
        max_length=windows.window,
        options=text_options(text.spec, rows=False),
        told=found.told,
        chats=found.chats,
        order=windows.order,
    )
    return WindowSet(tokens=tokens, info=info)


_MOST_OF_A_CHARACTER = 4
"""Tokens that one character is spelled in at most: so many bytes has the longest in UTF-8."""
HALF = "\ufffd"
"""What a tokenizer writes for bytes that are no whole character."""


def pieces(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, int]]:
    """Return the text of a row in pieces with the tokens of each: one, or those that only together are a character."""
    found: list[tuple[str, int]] = []
    done, before = 0, ""
    for end in range(1, len(ids) + 1):
        text = _decoded(ids[:end], tokenizer)
        own = text[len(before) :] if text.startswith(before) else _decoded(ids[done:end], tokenizer)
        if own.endswith(HALF) and end - done < _MOST_OF_A_CHARACTER and end < len(ids):
            continue
        found.append((own, end - done))
        done, before = end, text
    return found


def token_texts(ids: Iterable[int], tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """Return what each token adds to a text that it does not begin, the space before it included."""
    anchor = list(tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]
    length = len(_decoded(anchor, tokenizer))
    return {token: _decoded([*anchor, token], tokenizer)[length:] for token in set(ids)}


def _decoded(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def cut_windows(ids: Tokens, opening: Sequence[int], length: int) -> Tokens:
    """Return text as windows of exactly `length` tokens, (windows, length), each opened alike; the rest is left out.

    Every window that is scored, fitted to, trained on or held out is made here: a model that leans on its BOS is
    another model without it.
    """
    room = length - len(opening)
    body = ids[: len(ids) // room * room].reshape(-1, room)
    head = np.tile(np.asarray(opening, dtype=np.int64), (len(body), 1))
    return np.ascontiguousarray(np.concatenate([head, body], axis=1))


def spread_order(count: int) -> list[int]:
    """Return the numbers below `count` in a fixed order of which every beginning is spread over all of them.

    Van der Corput's sequence in base 2 (the bits of 0, 1, 2 ... read backwards, as a fraction of the whole), without
    numbers that are there already: of 16 it begins with 0, 8, 4, 12, 2. After 2^k of them no gap is wider than
    count / 2^k, rounded up.
    """
    bits = max(count - 1, 0).bit_length()
    fractions = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits)) if bits else iter((0,))
    return list(dict.fromkeys(fraction * count >> bits for fraction in fractions))


def fingerprint(rows: Iterable[Tokens]) -> str:
    """Return the SHA-256 of the row lengths and token ids, as 64-bit little-endian integers: the same everywhere."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(row, dtype="<i8").tobytes())
    return digest.hexdigest()


def _opening(
    policy: Bos, what: str, length: int, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[tuple[int, ...], str, int]:
    """Return (opening tokens, the policy and what it meant here, tokens of text that fit); refuse where none do."""
    prefix, meaning = _bos_prefix(policy, tokenizer)
    if length <= len(prefix):
        raise TextError(
            f"The {what} is {length} tokens, which the tokenizer's {len(prefix)} opening tokens fill; "
            f"choose at least {len(prefix) + 1}."
        )
    return prefix, meaning, length - len(prefix)


def _row(prefix: Sequence[int], ids: Sequence[int]) -> Tokens:
    row = np.asarray([*prefix, *ids], dtype=np.int64)
    row.setflags(write=False)
    return row


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """Rows of text as token ids."""

    ids: list[list[int]]
    """Of each row, without the opening that the BOS policy puts in front."""
    told: str
    """What was found out, chosen or converted on the way, for people."""
    chats: bool
    """Whether a chat template wrote them."""


def encode(text: TextRows, tokenizer: "PreTrainedTokenizerBase", *, joined: bool = False) -> Encoded:
    """Return the rows as token ids, or all of them `joined` as one: text by blank lines, chats by nothing.

    The spelling of a special token is text like any other, or that token, as the text's `special_tokens` says.

    Raises TextError or FieldError where a chat template is missing, or refuses a row.
    """
    written = write_chats(text.rows, text.spec.chat_template, tokenizer, text.source)
    rows = [("" if written.by_template else _BETWEEN).join(written.rows)] if joined else written.rows
    rule = text.spec.special_tokens
    parsed = rule == "parsed" or (rule == "auto" and written.by_template)
    ids, spelled = _text_ids(rows, tokenizer, parsed=parsed)
    if written.by_template and parsed:  # what the template itself writes is no news
        spelled = spellings((row.contents for row in text.rows if isinstance(row, Chat)), tokenizer)
    how = "parsed as tokens" if parsed else "read as text"
    told = [
        *text.told,
        *written.told,
        *([f"{counted(spelled, 'spelling')} of special tokens {how}"] if spelled else []),
    ]
    if written.by_template:  # which mostly writes the BOS itself: it is not doubled
        opening = list(_bos_prefix(text.spec.bos, tokenizer)[0])
        ids = [row[len(opening) :] if opening and row[: len(opening)] == opening else row for row in ids]
    return Encoded(ids=ids, told="; ".join(told), chats=written.by_template)


def _text_ids(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", *, parsed: bool
) -> tuple[list[list[int]], int]:
    """Return (the ids of each text without any special token in front, how often a special token is spelled in it).

    Truncation is left to the caller: the fast tokenizers keep it as state, so asking for it here would change a shared
    tokenizer under another thread's feet. `verbose=False` silences their warning about long texts.
    """
    spelled = spellings(texts, tokenizer)
    if spelled and not parsed:
        return _literal_ids(texts, tokenizer), spelled
    encoded: Any = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return cast(list[list[int]], encoded["input_ids"]), spelled


def spellings(texts: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return how often texts spell a special token of this tokenizer."""
    added = (str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special)
    special = sorted({*map(str, tokenizer.all_special_tokens), *added} - {""}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, special)) or r"(?!)")  # one that never matches, where there are none
    return sum(len(pattern.findall(text)) for text in texts)


def _literal_ids(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the ids of texts in which the spelling of a special token is text like any other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # the slow ones take it with the call
        encoded: Any = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(encoded["input_ids"])
    return [list(one.ids) for one in _without_special(backend).encode_batch(list(texts), add_special_tokens=False)]


@lru_cache(maxsize=1)
def _without_special(backend: Any) -> Any:
    """Return a copy of a fast tokenizer that finds no special tokens; its ids are the same.

    A copy, for `split_special_tokens` of transformers is state of the shared tokenizer. And that alone leaves models
    that look whole words up (Unigram, WordLevel) those of their vocabulary: here they are spelled with a NUL in front.
    """
    from tokenizers import Tokenizer

    content = json.loads(backend.to_str())
    model, added = content["model"], content["added_tokens"]
    special = {token["content"] for token in added if token["special"]} - {model.get("unk_token")}
    names = {word: f"\0{word}" for word in special}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(word, word): number for word, number in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(word, word), score] for word, score in model["vocab"]]
    if "merges" in model:
        pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if not special & {*pair, "".join(pair)}]
    content["added_tokens"] = [{**token, "content": names.get(token["content"], token["content"])} for token in added]
    found: Any = Tokenizer.from_str(json.dumps(content | {"truncation": None, "padding": None, "post_processor": None}))
    found.encode_special_tokens = True  # the unknown one keeps its name, which the model knows it by
    return found


def _bos_prefix(policy: Bos, tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[int, ...], str]:
    """Return the tokens that open every row or window, and the policy with what it meant here."""
    if policy == "always" and tokenizer.bos_token_id is None:
        raise TextError("BOS was asked for always, but this tokenizer has no BOS token; choose auto or never.")
    own = () if policy == "never" else _own_prefix(tokenizer)
    bos_id = cast(int, tokenizer.bos_token_id)
    prefix = (bos_id,) if policy == "always" and bos_id not in own else own
    names = " ".join(str(name) for name in tokenizer.convert_ids_to_tokens(list(prefix)))
    return prefix, f"{policy}: BOS {names}" if prefix else f"{policy}: no BOS"


def _own_prefix(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return the special tokens that the tokenizer itself puts before a text (mostly one BOS, or none).

    What it puts after a text (an EOS) is not used: no text follows there whose prediction it could open.
    """
    bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True, verbose=False)["input_ids"]
    starts = (i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return tuple(full[: next(starts, 0)])


_BETWEEN: Final = "\n\n"
"""Between two rows that are joined."""

FIT_TOKENS: Final = 16_384
"""Tokens to fit on where the text has as many: enough for the ridge, and done within a minute."""


def fit_rows(
    spec: Text, tokenizer: "PreTrainedTokenizerBase", *, tokens: int = FIT_TOKENS, before: TokenSet | None = None
) -> TokenSet:
    """Return the first tokens of a text as rows, the text joined so that none of it is lost.

    `before` is the part of the same text that a training sees: no row then reaches into what follows it, which that
    training holds out. The rows are those of a repair with as many `fit_tokens` of rows as long.
    """
    text = read_rows(spec)
    length = text.spec.fit_length
    count = max(tokens // length, 1)
    opening = _bos_prefix(text.spec.bos, tokenizer)[0]
    if before is not None:
        seen = sum(len(row) - len(opening) for row in before.rows)  # joined, not truncated, there are only more of them
        count = max(min(count, seen // length), 1)
    # In the order of the text: its end may be held out.
    windows = make_windows(text, WindowSpec(window=length, windows=count, order="first"), tokenizer)
    return TokenSet(rows=tuple(windows.tokens), info=windows.info, opening=opening)
