"""Repair: the share of the lost NLL that each method wins back, over the best measured block of each size.

Fitted on one text, scored on two others; all are named in the result. Blocks come from the measured map of a run (the
bundled one, unless --run names another) or from --blocks. With --baselines the comparators of `comparators.py` stand
beside what the package has, over n = 1, 2, 4, 6, 8. Prints each figure as it comes, tables, then one JSON line.

    python benchmarks/repair.py --fit c4.jsonl --score wiki.test.raw
    python benchmarks/repair.py --baselines --fit c4.jsonl --score wiki.test.raw --blocks 12,4 --only cut free_map
"""

import argparse
import json
import math
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparators import COMPARATORS, Case  # noqa: E402
from shortviz.analysis.planning import best_start  # noqa: E402
from shortviz.errors import ShortvizError  # noqa: E402
from shortviz.measure.losses import BaseScores, evaluate  # noqa: E402
from shortviz.model.handle import ModelHandle  # noqa: E402
from shortviz.model.load import load  # noqa: E402
from shortviz.model.prune import prune  # noqa: E402
from shortviz.records.formatting import with_error  # noqa: E402
from shortviz.records.ledger import recovered_share  # noqa: E402
from shortviz.records.measured import Evaluation  # noqa: E402
from shortviz.records.model import ModelRef  # noqa: E402
from shortviz.records.plan import Block, PrunePlan  # noqa: E402
from shortviz.records.table import Table, left, right  # noqa: E402
from shortviz.records.text import ALL_TOKENS, TextSpec, WindowSet, WindowSpec  # noqa: E402
from shortviz.runs.run import example_run, load_run  # noqa: E402
from shortviz.text.sources import builtin_names  # noqa: E402
from shortviz.text.tokens import make_windows  # noqa: E402

WINDOW = 256
Row = dict[str, Any]


def best_blocks(run: Path | None, sizes: list[int]) -> list[Block]:
    """Return the block of each size whose removal costs least by a run's measured map, the bundled one's if None."""
    found = example_run() if run is None else load_run(run)
    assert found.losses is not None, "the run has no measured map"
    starts = ((n, best_start(found.losses.increase, n, found.model)) for n in sizes)
    return [Block(start=start, n=n) for n, start in starts if start is not None]


class Bench:
    """What every block and method is measured with."""

    def __init__(self, base: ModelHandle, fit: WindowSet, texts: dict[str, WindowSet]) -> None:
        self.base, self.fit, self.texts = base, fit, texts
        self._scores = BaseScores(base)

    def block(self, block: Block, methods: list[str]) -> list[Row]:
        """Return a row for each method and text, printed as they come."""
        cut = prune(self.base, PrunePlan.of_blocks(self.base.info.num_layers, block))
        before = self._evaluate(cut)
        rows = []
        for method in methods:
            for row in self._method(method, block, cut, before):
                rows.append(row)
                show(row)
        return rows

    def _evaluate(self, handle: ModelHandle) -> dict[str, Evaluation]:
        return {
            name: evaluate(handle, windows, base=self.base, base_scores=self._scores)
            for name, windows in self.texts.items()
        }

    def _method(self, method: str, block: Block, cut: ModelHandle, before: dict[str, Evaluation]) -> list[Row]:
        case = Case(base=self.base, cut=cut, block=block, text=self.fit, found={})
        row: Row = {"start": block.start, "n": block.n, "method": method}
        began = time.perf_counter()
        try:
            with COMPARATORS[method](case) as handle:
                seconds = time.perf_counter() - began
                after = before if method == "cut" else self._evaluate(handle)
        except ShortvizError as error:
            return [row | {"text": name, "refused": str(error)} for name in self.texts]
        rows = []
        for name, found in after.items():
            share, error = recovered_share(before[name], found)
            given = {"lost": before[name].nll_increase, "increase": found.nll_increase, "share": share, "stderr": error}
            given["increase_stderr"] = found.nll_increase_stderr
            rows.append(row | {"text": name, "seconds": round(seconds, 1), **given, **case.found})
        return rows


def show(row: Row) -> None:
    print(f"({row['start']:>2},{row['n']:>2}) {row['method']:<16} {row['text']:<20} {cell(row)}", flush=True)


def cell(row: Row) -> str:
    """Return what a table shows of a method on one block: the share won back, for the cut what it lost in nats."""
    if "refused" in row:
        return "refused"
    if row["method"] == "cut":
        return with_error(row["increase"], row["increase_stderr"], sign=True)
    left_alone = row.get("applied") is False
    return "not applied" if left_alone else with_error(row["share"], row["stderr"])


def table(rows: list[Row], text: str, methods: list[str]) -> str:
    """Return the Markdown table of one text: blocks down, methods across, medians of the shares last."""
    of_text = [row for row in rows if row["text"] == text]
    blocks = dict.fromkeys((row["start"], row["n"]) for row in of_text)
    found = {(row["start"], row["n"], row["method"]): row for row in of_text}
    body = [[f"({s},{n})", *(cell(found[s, n, method]) for method in methods)] for s, n in blocks]
    medians = ("" if m == "cut" else with_error(median(of_text, m)) for m in methods)
    return Table((*left(text), *right(*methods)), [*body, ["median", *medians]]).markdown()


def median(rows: list[Row], method: str) -> float:
    shares = [row["share"] for row in rows if row["method"] == method and "share" in row]
    return statistics.median(shares) if shares else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--fit", type=Path, required=True, help="text to fit on: .txt, .jsonl, .csv or .parquet")
    parser.add_argument("--score", type=Path, required=True, help="text to score on")
    parser.add_argument("--key", default="text", help="column of either")
    parser.add_argument("--other", default="passages", help="built-in text to score on too")
    parser.add_argument("--tokens", type=int, default=16_384, help="tokens to fit on, in rows of 256")
    parser.add_argument("--windows", type=int, default=16, help="windows of 256 of --score")
    parser.add_argument("--other-windows", type=int, default=8, help="windows of 256 of --other")
    parser.add_argument("--run", type=Path, help="run whose measured map names the blocks; the bundled one")
    parser.add_argument("--sizes", type=int, nargs="*", help="block sizes; 1 to 8, with --baselines 1 2 4 6 8")
    parser.add_argument("--blocks", nargs="*", help="blocks instead, as start,n")
    parser.add_argument("--baselines", action="store_true", help="all comparators, not only what the package has")
    parser.add_argument("--only", nargs="*", choices=COMPARATORS, help="these methods")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.other not in builtin_names():
        parser.error(f"there is no built-in text {options.other!r}; choose {', '.join(builtin_names())}")
    torch.set_num_threads(options.threads)
    methods = options.only or (
        list(COMPARATORS) if options.baselines else ["cut", "linear_fold", "seam_refit", "seam_trained"]
    )
    sizes = options.sizes or ([1, 2, 4, 6, 8] if options.baselines else list(range(1, 9)))
    base = load(ModelRef(id=options.model, dtype="float32", device="cpu"))

    def windows(value: str | Path, count: int) -> WindowSet:
        kind = "builtin" if isinstance(value, str) else "file"
        spec = TextSpec(kind=kind, value=str(value), key=options.key, limit=None, max_length=ALL_TOKENS)
        return make_windows(spec, WindowSpec(window=WINDOW, windows=count), base.tokenizer)

    fit = windows(options.fit, options.tokens // WINDOW)
    texts = {
        options.score.name: windows(options.score, options.windows),
        options.other: windows(options.other, options.other_windows),
    }
    given = [tuple(map(int, text.split(","))) for text in options.blocks or ()]
    blocks = [Block(start=s, n=n) for s, n in given] or best_blocks(options.run, sizes)
    bench = Bench(base, fit, texts)
    found = [row for block in blocks for row in bench.block(block, methods)]
    for name in texts:
        print(f"\n{table(found, name, methods)}")
    result = {
        "benchmark": "repair",
        "date": datetime.now(UTC).date().isoformat(),
        "model": base.info.id,
        "fit": {"file": options.fit.name, "tokens": fit.info.tokens, "fingerprint": fit.info.fingerprint},
        "score": {
            name: {"windows": len(w.tokens), "order": w.info.order, "fingerprint": w.info.fingerprint}
            for name, w in texts.items()
        },
        "window": WINDOW,
        "processor": platform.machine(),
        "threads": options.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "medians": {name: {m: median([r for r in found if r["text"] == name], m) for m in methods} for name in texts},
        "results": found,
    }
    print(f"\n{json.dumps(result)}")


if __name__ == "__main__":
    main()
