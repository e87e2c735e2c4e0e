"""Measure the bundled runs of the demo model anew: `python tools/make_example_run.py`.

Two runs, each with distances over one built-in text by every criterion, the measured map on a few windows of the other
text, a few blocks evaluated on all of the app's own windows, and the ledger of one cut (cut, repaired, healed).
`--windows N --window W` say what the measured map rests on, `--run example` measures only one of the two.
On two cores: 12 to 14 minutes a run, and the map's share grows with the windows. `make example` does this and then the
lessons' data, which take their best blocks from the first run.
"""

import argparse
import shutil
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

from bundled_cut import BLOCK, tell, treated

from shortviz.analysis.planning import best_blocks
from shortviz.measure.distances import measure_distances
from shortviz.measure.generation import continue_text
from shortviz.measure.loss_map import measure_losses
from shortviz.measure.losses import BaseScores, evaluate
from shortviz.model.handle import ModelHandle
from shortviz.model.load import load
from shortviz.model.prune import prune
from shortviz.progress import Watch
from shortviz.records.ledger import Ledger, add_step, start_ledger, treated_name
from shortviz.records.model import ModelRef
from shortviz.records.plan import PrunePlan
from shortviz.records.run import Run
from shortviz.records.text import TextSpec, WindowSet, WindowSpec
from shortviz.runs.run import EXAMPLES, FILE, example_run, new_run, save_run, with_evaluation, with_ledger
from shortviz.text.tokens import DEFAULT_CALIBRATION, DEFAULT_EVALUATION, make_windows, tokenize

TEXTS = {
    "example": (DEFAULT_CALIBRATION, DEFAULT_EVALUATION, "SmolLM2-135M-Instruct, the demo model"),
    "example-passages": (
        TextSpec(kind="builtin", value="passages", limit=64, max_length=256),
        TextSpec(kind="builtin", value="python-reference", limit=64),
        "The demo model on other text",
    ),
}
"""Calibration text, evaluation text and name of each bundled run; the texts of one run have no row in common."""
WINDOWS = WindowSpec(window=256, windows=32)
SIZES = (3,)
"""Sizes whose best block by the angle at the last token is evaluated."""
PROMPT = "The capital of France is"


def main() -> None:
    """Write shortviz/example_run/*.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", choices=tuple(TEXTS), action="append", help="only this one; may be repeated")
    parser.add_argument("--windows", type=int, default=4, help="windows behind the measured map")
    parser.add_argument("--window", type=int, default=256, help="tokens of one of these windows")
    parser.add_argument("--heal", default="quick", help="healing preset of the ledger")
    parser.add_argument("--ledger-only", action="store_true", help="keep all that is there but the ledger")
    options = parser.parse_args()
    handle = load(ModelRef(id="demo"), watch=Watch(tell))
    for key in options.run or TEXTS:
        calibration, evaluation, name = TEXTS[key]
        scratch = Path(str(resources.files("shortviz"))) / "example_run" / f"scratch-{key}"
        windows = make_windows(evaluation, WINDOWS, handle.tokenizer)
        if options.ledger_only:
            run = replace(example_run(key), ledgers=())  # scored on other windows, an old one would stay beside the new
        else:
            few = make_windows(evaluation, WindowSpec(window=options.window, windows=options.windows), handle.tokenizer)
            run = evaluated(measure(handle, calibration, few, scratch, name), handle, windows)
        healed = ledger(handle, windows, preset=options.heal)
        run = with_ledger(run, healed)
        save_run(run, scratch)
        (scratch / FILE).replace(scratch.parent / EXAMPLES[key])
        shutil.rmtree(scratch)
        print(f"\n{key}: {(scratch.parent / EXAMPLES[key]).stat().st_size / 1000:.0f} kB", file=sys.stderr)


def measure(handle: ModelHandle, calibration: TextSpec, windows: WindowSet, scratch: Path, name: str) -> Run:
    """Return a run with distances and the measured map; killed, it goes on from its checkpoints."""
    tokens = tokenize(calibration, handle.tokenizer)
    distances = measure_distances(handle, tokens, checkpoint=scratch / "distances.npz", watch=Watch(tell))
    losses = measure_losses(handle, windows, coarse_tokens=0, checkpoint=scratch / "losses.npz", watch=Watch(tell))
    return replace(new_run(handle.info, tokens.info, name=name), distances=distances, losses=losses)


def evaluated(run: Run, handle: ModelHandle, windows: WindowSet) -> Run:
    """Return the run with the uncut model and a few blocks evaluated on the app's own windows."""
    assert run.distances is not None
    run = with_evaluation(run, evaluate(handle, windows))
    cache = BaseScores(handle)
    best = best_blocks(run.distances, "angular_last")
    for block in (*(best[n - 1] for n in SIZES), BLOCK):
        pruned = prune(handle, PrunePlan.of_blocks(handle.info.num_layers, block))
        run = with_evaluation(run, evaluate(pruned, windows, base=handle, base_scores=cache, watch=Watch(tell)))
        print(f"\n{block}: NLL {run.evaluations[-1].nll_increase:+.3f}", file=sys.stderr)
    return run


def ledger(handle: ModelHandle, windows: WindowSet, *, preset: str) -> Ledger:
    """Return the ledger of the bundled cut: repaired and healed on the text for that, scored on the run's own."""
    cache = BaseScores(handle)
    (_, cut), *rest = treated(handle, preset=preset)
    scored = evaluate(cut, windows, base=handle, base_scores=cache, watch=Watch(tell))
    texts = {"uncut_text": continue_text(handle, PROMPT), "cut_text": continue_text(cut, PROMPT)}
    found = start_ledger(scored, prompt=PROMPT, **texts)
    for step, model in rest:
        score = evaluate(model, windows, base=handle, base_scores=cache, watch=Watch(tell))
        found = add_step(
            found, treated_name(model.treatments), score, model.treatments, continuation=continue_text(model, PROMPT)
        )
        share = found.steps[-1].recovered
        print(f"\n{step}: {'' if share is None else f'{100 * share:.0f} % won back'}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
