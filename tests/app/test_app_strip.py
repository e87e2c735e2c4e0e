"""The token strip of the inspector: what it shows of a passage, in colours that can be read on."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shortviz.figures.strip import scale_end, shade, strip_data, visible
from shortviz.records.measured import TokenLoss
from shortviz.service import measure
from shortviz.service.inspect import FIRST_LOOK_TOKENS
from shortviz.service.service import Service
from shortviz.ui.session import state as s
from tests.support.app import App

QUESTION = "Which words need these layers?"
GROUND = {False: "#ffffff", True: "#10161d"}


def strips(page: App) -> list[dict[str, Any]]:
    found = [json.loads(one.proto.json) for one in page.at.get("bidi_component")]
    return [one for one in found if "tokens" in one]


def token(text: str, rise: float = 0.0, **more: Any) -> TokenLoss:
    likely = (("a <b>", 0.5), ("\ufffd", 0.25))
    given: dict[str, Any] = {"tokens": 1, "special": False, "before": 1.0, "after": 1.0 + rise, "uncut": likely}
    return TokenLoss(text=text, cut=likely, **(given | more))


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_without_a_model_the_strip_says_that_it_takes_one(app: Callable[..., App]) -> None:
    page = app()
    assert QUESTION in page.words
    assert "Load the model to see by how much the loss of each word rises." in page.words
    assert strips(page) == []


def test_the_strip_comes_with_the_first_number_and_again_without_measuring(measured: App, tools: Service) -> None:
    measured.number("start").set_value(1)
    measured.run()
    measured.finish("evaluate")
    (strip,) = strips(measured)
    block, ref = s.block(measured.state), s.ref(measured.state)
    assert block is not None
    assert ref is not None
    key = measure.measured_key(ref, s.evaluation(measured.state), block.layers)
    kept = tools.words.get(key)
    assert kept is not None
    assert sum(one.tokens for one in kept) == FIRST_LOOK_TOKENS
    assert [one["text"] for one in strip["tokens"]] == [visible(one.text) for one in kept]
    assert "The first 127 scored tokens of the evaluation text: " in measured.words
    measured.number("n").set_value(3)
    measured.run()
    measured.finish("evaluate")
    assert strips(measured) != [strip]
    tools.words.drop(key)
    measured.number("n").set_value(block.n)
    measured.run()
    assert measured.finish("evaluate").state == "done"
    assert strips(measured) == [strip], "the numbers were known, and the tokens were looked at again"


def test_loss_that_rises_is_red_and_that_falls_is_blue_on_a_scale_that_is_said() -> None:
    found = [token("up", 2.0), token("so"), token("down", -2.0), *[token("x", 1.0)] * 60]
    data = strip_data(found, "layer 3", dark=False)
    assert data["scale"] == ["loss falls by 1 nats", "rises by 1 or more"]
    assert [one["shade"] for one in data["tokens"][:3]] == ["#b2182b", "#f7f7f7", "#2166ac"]
    assert data["tokens"][0]["said"] == "up, loss rises by 2.00 nats"
    assert data["tokens"][2]["head"] == "down: loss falls by 2.00 nats (1.00 → -1.00 nats)"
    assert data["first"] == 0
    assert scale_end([0.0, 0.01]) == 0.5, "what hardly changes looks so"
    assert scale_end([math.nan]) == 0.5


@pytest.mark.parametrize("dark", [False, True])
def test_the_text_on_every_shade_is_read_at_four_and_a_half_to_one(dark: bool) -> None:
    for rise in np.linspace(-1.2, 1.2, 481):
        ground, ink = shade(float(rise), 1.0, dark=dark)
        low, high = sorted((luminance(ground), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (rise, ground, ink)


def test_what_does_not_show_is_seen_and_pieces_of_characters_are_named() -> None:
    assert [visible(text) for text in ("\n\n", " \tx", "  ", "", "a\u202eb", "é")] == [
        "⏎⏎", " ⇥x", "␣␣", "∅", "a⟨202E⟩b", "é",
    ]  # fmt: skip
    begin = token("<s>", special=True, before=math.nan, after=math.nan, uncut=())
    first, mountain, line = strip_data([begin, token("🏔", 1.0, tokens=4), token(".\n")], "x", dark=True)["tokens"]
    assert (first["apart"], first["shade"], first["said"]) == (True, "", "<s>, not scored, nothing precedes it")
    assert "4 tokens that are one character" in mountain["head"]
    assert line["text"] == ".⏎\n"
    assert mountain["likely"][0] == ("uncut", [("a <b>", "50.0 %", False), ("part of a character", "25.0 %", False)])
