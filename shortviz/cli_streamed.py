"""`map --stream --blocks` and `evaluate --stream`: losses of a model that does not fit. Heavy imports wait inside."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from shortviz.cli_options import TextOptions, readable
from shortviz.errors import ShortvizError
from shortviz.progress import Watch

if TYPE_CHECKING:
    from shortviz.cli_options import Removal
    from shortviz.records import Block, Evaluation, ModelRef


def blocks_asked(given: Sequence[str]) -> "list[Block]":
    """Return the blocks written as `12,4`, start first; raises ShortvizError."""
    from shortviz.records import Block

    found = []
    for text in given:
        parts = [part.strip() for part in text.split(",")]
        if len(parts) != 2 or not all(part.isdecimal() and part.isascii() and len(part) < 6 for part in parts):
            raise ShortvizError(f"--blocks is {text!r}; give start,n, such as --blocks 12,4, once for each block.")
        found.append(Block(start=int(parts[0]), n=int(parts[1])))
    return list(dict.fromkeys(found))


def check_streamable(*, task: bool, adapter: bool) -> None:
    """Raise ShortvizError where more is asked of a streamed model than its loss."""
    if task:
        raise ShortvizError("Questions are not scored while a model is streamed; leave --tasks or --stream out.")
    if adapter:
        raise ShortvizError("An adapter is not put into a streamed model; leave --adapter or --stream out.")


def streamed_evaluations(
    ref: "ModelRef", text: TextOptions, cuts: "Sequence[Removal]", watch: Watch
) -> "list[Evaluation]":
    """Return the evaluation of each cut, or of the uncut model alone, all in one sweep over the layers.

    Of several processes that a launcher started each takes its share of the windows, and all but one end here.
    """
    from shortviz import texts
    from shortviz.cli_output import estimate_line
    from shortviz.cli_ranks import share
    from shortviz.loading import estimate
    from shortviz.ranks import joined
    from shortviz.streamed_losses import evaluate_streamed
    from shortviz.streamed_model import open_streamed

    spec, windows = readable(text.spec(texts.DEFAULT_EVALUATION)), text.window_spec()
    with joined() as ranks:
        ref, watch = share(ranks, ref, watch)
        found = estimate(ref)
        if ranks is None or ranks.writes:
            print(estimate_line(found), file=sys.stderr)
        plans = [cut.of(found.num_layers) for cut in cuts]
        with open_streamed(ref, watch=watch) as model:
            window_set = texts.make_windows(spec, windows, model.tokenizer)
            if ranks is not None:
                ranks.agree({"text": window_set.info.fingerprint, "options": (window_set.tokens.shape, plans)})
            evaluations = evaluate_streamed(model, window_set, plans, ranks=ranks, watch=watch)
    if ranks is not None and not ranks.writes:
        raise typer.Exit
    return evaluations


def blocks_json(blocks: "Sequence[Block]", found: "Sequence[Evaluation]") -> dict[str, Any]:
    """Return {"blocks": [{start, n, and what `evaluate --json` prints}, ...]}."""
    from shortviz.records import evaluation_json

    pairs = zip(blocks, found, strict=True)
    return {"blocks": [{"start": block.start, "n": block.n} | evaluation_json(one) for block, one in pairs]}


def blocks_text(blocks: "Sequence[Block]", found: "Sequence[Evaluation]") -> str:
    """Return a table of the blocks, the best first."""
    from shortviz.cli_output import score_words
    from shortviz.table import Table, right
    from shortviz.words import block_text, counted, with_error

    base, text = found[0].base, found[0].text
    assert base is not None
    rows = []
    for block, one in sorted(zip(blocks, found, strict=True), key=lambda pair: pair[1].score.nll):
        increase = with_error(one.nll_increase, one.nll_increase_stderr, sign=True)
        change, score = with_error(one.kl, one.kl_stderr), one.score
        perplexity = with_error(score.perplexity, score.perplexity_stderr)
        rows.append([str(block.n), block_text(block.start, block.n), increase, change, perplexity])
    columns = right("n", "layers", "NLL increase, nats", "KL, nats", "perplexity")
    return "\n".join(
        [
            f"Uncut model: {score_words(base)}. Text: {text.source}; {counted(base.tokens, 'scored token')}, "
            f" windows of {text.max_length}. Streamed in one sweep over the layers.",
            Table(columns, rows).text(),
        ]
    )
