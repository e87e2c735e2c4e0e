"""TextSpec -> TokenSet (rows for distances) or WindowSet (windows for losses): tokens, BOS policy, fingerprint.

Where rows come from is `text_sources`; this module turns them into tokens. No torch: the tokenizer is handed in.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from shortviz.errors import TextError
from shortviz.records.text import Bos, TextInfo, TextSpec, Tokens, TokenSet, WindowSet, WindowSpec, text_options
from shortviz.text.sources import TextRows, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


DEFAULT_CALIBRATION = TextSpec(kind="builtin", value="python-reference", limit=64, max_length=256)
"""What distances are averaged over unless other text is chosen."""
DEFAULT_EVALUATION = TextSpec(kind="builtin", value="passages")
"""What losses are scored on unless other text is chosen: no row of the default calibration set is in it."""


def tokenize(spec: TextSpec, tokenizer: "PreTrainedTokenizerBase") -> TokenSet:
    """Return the text's rows as token ids, each truncated to `spec.max_length` tokens, BOS included.

    Rows shorter than 2 tokens, or without any text, are left out and counted in `info.skipped`.

    Raises:
        TextError: the text cannot be read, every row is too short, or the BOS policy does not fit the tokenizer.
        ResourceError: a data set cannot be reached.
    """
    return tokenize_rows(read_rows(spec), spec, tokenizer)


def tokenize_rows(text: TextRows, spec: TextSpec, tokenizer: "PreTrainedTokenizerBase") -> TokenSet:
    """Return rows that are already in memory as `tokenize` returns those it reads; of `spec`, the length and BOS count.

    Raises:
        TextError: every row is too short, or the BOS policy does not fit the tokenizer.
    """
    prefix, meaning = _bos_prefix(spec.bos, tokenizer)
    room = spec.max_length - len(prefix)
    if room < 1:
        raise TextError(
            f"The row length is {spec.max_length} tokens, which the tokenizer's {len(prefix)} opening tokens fill; "
            f"choose at least {len(prefix) + 1}."
        )
    rows = [_row(prefix, ids[:room]) for ids in _text_ids(text.rows, tokenizer)]
    long_enough = tuple(row for row in rows if len(row) >= max(2, len(prefix) + 1))
    if not long_enough:
        raise TextError(
            f"All {len(rows)} rows of the {text.source} are shorter than 2 tokens; give text of at least a few words."
        )
    info = TextInfo(
        source=text.source,
        rows=len(long_enough),
        tokens=sum(len(row) for row in long_enough),
        fingerprint=fingerprint(long_enough),
        skipped=len(rows) - len(long_enough),
        bos=meaning,
        max_length=spec.max_length,
        options=text_options(spec),
    )
    return TokenSet(rows=long_enough, info=info)


def make_windows(
    spec: TextSpec, windows: WindowSpec, tokenizer: "PreTrainedTokenizerBase", text: TextRows | None = None
) -> WindowSet:
    """Return evaluation windows of exactly `windows.window` tokens: consecutive, without overlap.

    The rows are joined by a blank line and tokenised once. With BOS a window is the BOS and window - 1 tokens of text;
    the tokenizer's own BOS at the start of the text is not counted as text. Fewer windows than asked for are
    returned where the text is too short for them; a remainder shorter than a window is left out. `text` are the rows,
    where they were read already.

    Raises:
        TextError: the text cannot be read, is shorter than one window, or the BOS policy does not fit the tokenizer.
        ResourceError: a data set cannot be reached.
    """
    prefix, meaning = _bos_prefix(spec.bos, tokenizer)
    room = windows.window - len(prefix)
    if room < 1:
        raise TextError(
            f"The window is {windows.window} tokens, which the tokenizer's {len(prefix)} opening tokens fill; "
            f"choose at least {len(prefix) + 1}."
        )
    text = text or read_rows(spec)
    (ids,) = _text_ids(["\n\n".join(text.rows)], tokenizer)
    count = min(windows.windows, len(ids) // room)
    if count < 1:
        advice = f"choose a window of at most {len(ids) + len(prefix)} tokens or" if len(ids) > 1 else "give"
        raise TextError(
            f"The {text.source} has {len(ids)} tokens, fewer than one window of {windows.window} needs ({room}); "
            f"{advice} more text."
        )
    body = np.asarray(ids[: count * room], dtype=np.int64).reshape(count, room)
    opening = np.tile(np.asarray(prefix, dtype=np.int64), (count, 1))
    tokens = np.ascontiguousarray(np.concatenate([opening, body], axis=1))
    tokens.setflags(write=False)
    info = TextInfo(
        source=text.source,
        rows=count,
        tokens=tokens.size,
        fingerprint=fingerprint(tokens),
        bos=meaning,
        max_length=windows.window,
        options=text_options(spec),
    )
    return WindowSet(tokens=tokens, info=info)


def opening_tokens(policy: Bos, tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    """Return the tokens that open every row and every window under a BOS policy."""
    return _bos_prefix(policy, tokenizer)[0]


def packed_rows(windows: WindowSet) -> TokenSet:
    """Return windows as rows, for what fits or trains on text and is to lose none of it."""
    return TokenSet(rows=tuple(windows.tokens), info=windows.info)


def fingerprint(rows: Iterable[Tokens]) -> str:
    """Return the SHA-256 of the row lengths and token ids, as 64-bit little-endian integers: the same everywhere."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(row, dtype="<i8").tobytes())
    return digest.hexdigest()


def _row(prefix: Sequence[int], ids: Sequence[int]) -> Tokens:
    row = np.asarray([*prefix, *ids], dtype=np.int64)
    row.setflags(write=False)
    return row


def _text_ids(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Return the ids of each text without any special token.

    Truncation is left to the caller: the fast tokenizers keep it as state, so asking for it here would change a shared
    tokenizer under another thread's feet. `verbose=False` silences their warning about long texts.
    """
    encoded: Any = tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        verbose=False,
    )
    return cast(list[list[int]], encoded["input_ids"])


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


# The text that a repair is fitted to: rows of equal length from the beginning of a text. No torch.

FIT_TOKENS: Final = 16_384
"""Tokens to fit on where the text has as many: enough for the ridge, and done within a minute."""
FIT_LENGTH: Final = 256
"""Tokens in a row of them, where nobody says otherwise."""


def fit_rows(
    spec: TextSpec,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tokens: int = FIT_TOKENS,
    length: int = FIT_LENGTH,
    before: TokenSet | None = None,
    text: TextRows | None = None,
) -> TokenSet:
    """Return the first tokens of a text as rows, the text joined so that none of it is lost.

    `text` are its own rows, where they were read already.
    `before` is the part of the same text that a training sees: no row then reaches into what follows it, which that
    training holds out. The rows are those of `shortviz repair` with as many --fit-tokens.
    """
    count = max(tokens // length, 1)
    if before is not None:
        opening = len(opening_tokens(spec.bos, tokenizer))
        seen = sum(len(row) - opening for row in before.rows)  # joined and not truncated there are only more of them
        count = max(min(count, seen // length), 1)
    return packed_rows(make_windows(spec, WindowSpec(window=length, windows=count), tokenizer, text))
