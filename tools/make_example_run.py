"""Measure the bundled run of the demo model anew: `python tools/make_example_run.py` (half an hour on two cores).

Distances over the default calibration text by every criterion, the measured map on a few windows of the default
evaluation text, and a few blocks evaluated on all of the app's own windows.
"""

import shutil
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

from shortviz.distances import measure_distances
from shortviz.loading import load
from shortviz.loss_map import measure_losses
from shortviz.losses import BaseScores, evaluate
from shortviz.planning import best_blocks
from shortviz.pruning import prune
from shortviz.records import Block, ModelRef, Progress, PrunePlan, WindowSpec
from shortviz.runs import FILE, new_run, save_run, with_evaluation
from shortviz.texts import DEFAULT_CALIBRATION, DEFAULT_EVALUATION, make_windows, tokenize

WINDOWS = WindowSpec(window=256, windows=32)
MAP_WINDOWS = WindowSpec(window=128, windows=3)
SIZES = (3,)
"""Sizes whose best block by the angle at the last token is evaluated."""
ALSO = (Block(start=12, n=4),)
"""Evaluated too: the block of the handbook's examples."""


def _tell(progress: Progress) -> None:
    print(f"\r{progress.stage} {progress.done:.0f}/{progress.total:.0f} {progress.unit}   ", end="", file=sys.stderr)


def main() -> None:
    """Write shortviz/example_run/run.json."""
    folder = Path(str(resources.files("shortviz"))) / "example_run"
    scratch = folder / "scratch"
    handle = load(ModelRef(id="demo"), on_progress=_tell)
    tokens = tokenize(DEFAULT_CALIBRATION, handle.tokenizer)
    distances = measure_distances(handle, tokens, checkpoint=scratch / "distances.npz", on_progress=_tell)
    run = new_run(handle.info, tokens.info, name="SmolLM2-135M-Instruct, the demo model")
    run = replace(run, distances=distances)
    map_windows = make_windows(DEFAULT_EVALUATION, MAP_WINDOWS, handle.tokenizer)
    run = replace(
        run,
        losses=measure_losses(
            handle, map_windows, coarse_tokens=0, checkpoint=scratch / "losses.npz", on_progress=_tell
        ),
    )
    shutil.rmtree(scratch)
    (folder / FILE).unlink(missing_ok=True)
    windows = make_windows(DEFAULT_EVALUATION, WINDOWS, handle.tokenizer)
    cache = BaseScores(handle)
    run = with_evaluation(run, evaluate(handle, windows))
    best = best_blocks(distances, "angular_last")
    for block in (*(best[n - 1] for n in SIZES), *ALSO):
        pruned = prune(handle, PrunePlan.of_blocks(handle.info.num_layers, block))
        run = with_evaluation(run, evaluate(pruned, windows, base=handle, base_scores=cache, on_progress=_tell))
        save_run(run, folder)
        print(f"\n{block}: NLL {run.evaluations[-1].nll_increase:+.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()
