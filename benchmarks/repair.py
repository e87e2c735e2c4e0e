"""Repair: the share of the lost NLL that each method wins back, over the best measured block of each size.

Fitted on one text, scored on another; both files are named in the result. Blocks come from the measured map of a run
(the bundled one, unless --run names another) or from --blocks. Prints a table, then one JSON line.

    python benchmarks/repair.py --fit c4.jsonl --score wiki.test.raw
    python benchmarks/repair.py --fit c4.jsonl --score wiki.test.raw --blocks 14,2 13,6 --windows 4   # about 10 minutes
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from shortviz.analysis.planning import best_start
from shortviz.errors import ShortvizError
from shortviz.measure.losses import BaseScores, evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.records.formatting import percent
from shortviz.records.ledger import recovered_share
from shortviz.records.model import ModelRef
from shortviz.records.plan import Block, PrunePlan
from shortviz.records.text import TextSpec, TokenSet, WindowSet, WindowSpec
from shortviz.repair.repair import repair
from shortviz.runs import run as runs
from shortviz.text.tokens import make_windows, packed_rows

BUNDLED = Path(runs.__file__).parent / "example_run"
Row = dict[str, float | int | str | bool | None]


def best_blocks(run: Path, sizes: int) -> list[Block]:
    """Return the block of each size whose removal costs least by the run's measured map."""
    found = runs.load_run(run)
    assert found.losses is not None, "the run has no measured map"
    starts = ((n, best_start(found.losses.increase, n, found.model)) for n in range(1, sizes + 1))
    return [Block(start=start, n=n) for n, start in starts if start is not None]


def measure(
    base: ModelHandle, block: Block, method: str, tokens: TokenSet, windows: WindowSet, scores: BaseScores
) -> Row:
    cut = prune(base, PrunePlan.of_blocks(base.info.num_layers, block))
    before = evaluate(cut, windows, base=base, base_scores=scores)
    row: Row = {"start": block.start, "n": block.n, "method": method, "increase": before.nll_increase}
    began = time.perf_counter()
    try:
        repaired = repair(cut, base, tokens, method=method)
    except ShortvizError as error:
        return row | {"refused": str(error)}
    seconds = time.perf_counter() - began
    after = evaluate(repaired.handle, windows, base=base, base_scores=scores)
    share, error = recovered_share(before, after)
    settings = repaired.treatment.settings
    row |= {"share": share, "stderr": error, "seconds": round(seconds, 1), "applied": repaired.applied}
    return row | {"found": str(settings.get("ridge", settings.get("factor", "")))}


def show(row: Row) -> None:
    if "refused" in row:
        print(f"({row['start']:>2},{row['n']:>2}) {row['method']:<20} refused: {row['refused']}", flush=True)
        return
    print(
        f"({row['start']:>2},{row['n']:>2}) {row['method']:<20} lost {row['increase']:.4f}  won back "
        f"{percent(row['share'], row['stderr']):>14}  {row['seconds']:6.1f} s  {row['found']}"
        f"{'' if row['applied'] else '  not applied'}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--fit", type=Path, required=True, help="text to fit on: .txt, .jsonl, .csv or .parquet")
    parser.add_argument("--score", type=Path, required=True, help="text to score on")
    parser.add_argument("--key", default="text", help="column of either")
    parser.add_argument("--fit-tokens", type=int, default=16_384)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--run", type=Path, default=BUNDLED, help="run whose measured map names the blocks")
    parser.add_argument("--sizes", type=int, default=8, help="block sizes 1 .. this")
    parser.add_argument("--blocks", nargs="*", help="blocks instead, as start,n")
    parser.add_argument("--methods", nargs="*", default=["linear_fold", "seam_refit"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = load(ModelRef(id=options.model, dtype="float32", device="cpu"))
    rows_spec = WindowSpec(window=256, windows=options.fit_tokens // 256)
    fit, score = (
        TextSpec(kind="file", value=str(p), key=options.key, limit=None) for p in (options.fit, options.score)
    )
    tokens = packed_rows(make_windows(fit, rows_spec, base.tokenizer))
    windows = make_windows(score, WindowSpec(window=options.window, windows=options.windows), base.tokenizer)
    given = [tuple(map(int, text.split(","))) for text in options.blocks or ()]
    blocks = [Block(start=s, n=n) for s, n in given] or best_blocks(options.run, options.sizes)
    scores = BaseScores(base)
    found: list[Row] = []
    for block in blocks:
        for method in options.methods:
            found.append(measure(base, block, method, tokens, windows, scores))
            show(found[-1])
    medians = {}
    for method in options.methods:
        shares = [float(str(row["share"])) for row in found if row["method"] == method and "share" in row]
        medians[method] = round(statistics.median(shares), 3) if shares else None
        print(f"median of {len(shares)} blocks, {method:<20} {medians[method]}")
    result = {
        "benchmark": "repair",
        "model": base.info.id,
        "fit": {"file": options.fit.name, "tokens": tokens.info.tokens, "fingerprint": tokens.info.fingerprint},
        "score": {"file": options.score.name, "windows": len(windows.tokens), "window": options.window},
        "processor": platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "medians": medians,
        "results": found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
