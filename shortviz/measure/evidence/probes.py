"""Generation probes: short things with known answers that a model is made to write greedily, marked to the letter.

Copying, two-digit addition, closing brackets, repeating a fact that the prompt gives, and plain facts: what cuts lose
first is not what perplexity shows. Every prompt is a few examples and one question of a line each, as models without a
chat template take them too; the answer is what the model writes up to the end of the line.
"""

import copy
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from transformers import StoppingCriteriaList
from transformers.cache_utils import DynamicCache

from shortviz.measure.generation import greedy
from shortviz.measure.tasks import prefix_cache
from shortviz.model.handle import ModelHandle
from shortviz.progress import NO_WATCH, Watch
from shortviz.records.ledger import Probe, ProbeItem, ProbeScore

SHOTS: Final = 5
"""Examples in front of every question."""
Pair = tuple[str, str]

_WORDS = (
    "apple river stone window garden pencil yellow silver morning paper bottle forest candle summer mirror bridge "
    "carpet dragon engine feather hammer island jacket kitten ladder market needle orange pocket rabbit"
)
_NAMES = "Anna Ben Clara David Emma Frank Grace Henry Iris Jack Kate Leo Mary Nick Olga Paul Rose Sam Tina Will"
_CITIES = "Paris London Rome Berlin Madrid Vienna Oslo Lisbon Dublin Prague Athens Moscow Tokyo Cairo Delhi"
_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}


def _copy(draw: random.Random) -> Iterator[Pair]:
    while True:
        words = " ".join(draw.sample(_WORDS.split(), draw.randint(3, 5)))
        yield f"Say: {words}. Repeat:", words


def _addition(draw: random.Random) -> Iterator[Pair]:
    while True:
        one, other = draw.randint(10, 99), draw.randint(10, 99)
        yield f"{one} + {other} =", f"{one + other}"


def _brackets(draw: random.Random) -> Iterator[Pair]:
    while True:
        opened = draw.choices(list(_CLOSING), k=draw.randint(2, 4))
        yield f"Open: {' '.join(opened)} Close:", " ".join(_CLOSING[one] for one in reversed(opened))


def _recall(draw: random.Random) -> Iterator[Pair]:
    while True:
        names, cities = draw.sample(_NAMES.split(), 3), draw.sample(_CITIES.split(), 3)
        told = " ".join(f"{name} lives in {city}." for name, city in zip(names, cities, strict=True))
        asked = draw.randrange(3)
        yield f"{told} Where does {names[asked]} live?", cities[asked]


_FACTS = {
    "The capital of {} is": "Sweden Stockholm, Kenya Nairobi, France Paris, Germany Berlin, Italy Rome, Spain Madrid, "
    "Portugal Lisbon, Austria Vienna, Greece Athens, Russia Moscow, Poland Warsaw, Hungary Budapest, Norway Oslo, "
    "Finland Helsinki, Denmark Copenhagen, Ireland Dublin, England London, Belgium Brussels, Japan Tokyo, China "
    "Beijing, Egypt Cairo, Cuba Havana, Iran Tehran, Iraq Baghdad, Turkey Ankara, Canada Ottawa, Peru Lima, Chile "
    "Santiago, Thailand Bangkok, Vietnam Hanoi, Ukraine Kyiv, Romania Bucharest, Bulgaria Sofia, Serbia Belgrade, "
    "Lebanon Beirut",
    "The opposite of {} is": "rich poor, early late, hot cold, big small, up down, left right, open closed, day night, "
    "black white, good bad, happy sad, fast slow, high low, long short, wet dry, young old, full empty, strong weak, "
    "hard soft, true false, first last, thick thin, loud quiet, near far, heavy light",
    "The day after {} is": "Monday Tuesday, Tuesday Wednesday, Wednesday Thursday, Thursday Friday, Friday Saturday, "
    "Saturday Sunday, Sunday Monday",
    "The month after {} is": "January February, February March, March April, April May, May June, June July, "
    "July August, August September, September October, October November, November December, December January",
    "The plural of {} is": "child children, man men, woman women, foot feet, tooth teeth, mouse mice, goose geese, "
    "leaf leaves, knife knives, wolf wolves, city cities, box boxes",
    "The past tense of {} is": "go went, see saw, eat ate, take took, give gave, run ran, write wrote, speak spoke, "
    "drink drank, sing sang, fly flew, buy bought, think thought, know knew, come came, find found",
}


def _facts(_draw: random.Random) -> Iterator[Pair]:
    pairs = [
        (form.format(fact.split()[0]), fact.split()[1]) for form, facts in _FACTS.items() for fact in facts.split(", ")
    ]
    # Each kind has its turn among the examples and the questions; the order is always the same.
    random.Random("facts").shuffle(pairs)
    yield from pairs


MAKERS: Final[dict[str, Callable[[random.Random], Iterator[Pair]]]] = {
    "copy": _copy,
    "addition": _addition,
    "brackets": _brackets,
    "recall": _recall,
    "facts": _facts,
}
"""By the name of a probe: what makes its questions and answers, without end but for the facts."""


def make_probe(name: str, handle: ModelHandle, *, seed: int = 0, items: int = 100) -> Probe:
    """Return a probe's items, all different, the same for a seed.

    Refused where the tokenizer cannot write them, or the model's context has no room for a prompt and its answer.
    """
    made: dict[str, str] = {}
    for question, answer in MAKERS[name](random.Random(f"{name} {seed}")):
        made.setdefault(question, answer)
        if len(made) == SHOTS + items:
            break
    lines = [ProbeItem(question=question, answer=answer) for question, answer in made.items()]
    examples = "".join(f"{item.question} {item.answer}\n" for item in lines[:SHOTS])
    probe = Probe(name=name, seed=seed, examples=examples, items=tuple(lines[SHOTS:]))
    lost = _lost(handle.tokenizer, {character for item in lines for character in item.question + item.answer})
    needed, context = max(map(len, _rows(handle, probe))) + _longest(handle, probe), handle.info.context_length
    if lost:
        why = f"this tokenizer cannot write {lost!r}"
    elif context is not None and needed > context:
        why = f"it takes {needed} tokens, and the model's context is {context}"
    else:
        return probe
    return Probe(name=name, seed=seed, examples="", items=(), refused=f"The probe {name} was not asked: {why}.")


def _rows(handle: ModelHandle, probe: Probe) -> list[list[int]]:
    """Return the tokens of every prompt."""
    prompts = [probe.examples + item.question for item in probe.items]
    return list(handle.tokenizer(prompts, verbose=False)["input_ids"])


def _longest(handle: ModelHandle, probe: Probe) -> int:
    """Return how many tokens an answer may take: the longest right one, its line's end, and one more."""
    answers = [f" {item.answer}\n" for item in probe.items]
    return max(map(len, handle.tokenizer(answers, add_special_tokens=False, verbose=False)["input_ids"])) + 1


def _lost(tokenizer: Any, characters: set[str]) -> str:
    """Return the characters that do not come back from their tokens, in order."""
    ids = tokenizer("a " + " ".join(sorted(characters)), add_special_tokens=False, verbose=False)["input_ids"]
    written = tokenizer.decode(ids, skip_special_tokens=True)
    return "".join(sorted(one for one in characters if one not in written))


@torch.inference_mode()
def score_probe(handle: ModelHandle, probe: Probe, *, batch_size: int = 32, watch: Watch = NO_WATCH) -> ProbeScore:
    """Return what the model writes greedily for every item, and which of that is right to the letter.

    Prompts of one length are run together, and the examples, which all begin with, once a batch: nothing is padded, so
    that neither masks nor positions are touched. Raises Stopped where a stop came first.
    """
    rows, longest = _rows(handle, probe), _longest(handle, probe)
    shared = min(len(os.path.commonprefix(rows)), *(len(row) - 1 for row in rows))
    alike = defaultdict(list)
    for at, row in enumerate(rows):
        alike[len(row)].append(at)
    written = [""] * len(rows)
    cache = prefix_cache(handle, torch.tensor([rows[0][:shared]])) if shared else None
    batches = [group[at : at + batch_size] for group in alike.values() for at in range(0, len(group), batch_size)]
    done = 0
    for batch in batches:
        watch.check(f"Stopped within the probe {probe.name}.")
        texts = _write(handle, torch.tensor([rows[at] for at in batch]), copy.deepcopy(cache), longest)
        for at, text in zip(batch, texts, strict=True):
            written[at] = text
        done += len(batch)
        watch.tell("probe", done=done, total=len(rows), unit="items", detail=probe.name)
    right = "".join("01"[text == item.answer] for text, item in zip(written, probe.items, strict=True))
    return ProbeScore(probe=probe.name, seed=probe.seed, right=right, written=tuple(written))


def _write(handle: ModelHandle, ids: Tensor, cache: DynamicCache | None, most: int) -> list[str]:
    """Return what the model writes after each row, up to the end of the line and without spaces around it.

    The cache is that of what all rows begin with, one row of it.
    """
    ids = ids.to(handle.model.device)
    if cache is not None:
        cache.batch_select_indices(torch.zeros(len(ids), dtype=torch.int64, device=ids.device))

    def lines(found: Tensor) -> list[str]:
        return list(handle.tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True))

    def ended(found: Tensor, _scores: Any, **_: Any) -> Tensor:
        return torch.tensor(["\n" in text for text in lines(found)], device=ids.device)

    with handle.lock:
        found = handle.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=greedy(handle, most),
            stopping_criteria=StoppingCriteriaList([ended]), past_key_values=cache,
        )  # fmt: skip
    return [text.split("\n")[0].strip() for text in lines(found)]
