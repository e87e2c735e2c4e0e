"""A session of the app in a test, with the words that tests need."""

import json

from streamlit.testing.v1 import AppTest
from streamlit.util import calc_hash

from shortviz.service.queue import JobState
from shortviz.ui.session import state as s
from shortviz.ui.session.service import bench
from tests.support.paths import ROOT

JOB_SECONDS = 300
TEXT = "The river carries what the hills let go, and the mill turns it into bread. " * 40


def plain(markdown: str) -> str:
    return markdown.replace("\\", "")


class App:
    """An AppTest with the words that tests need; it opens on the map unless `first_page` says otherwise."""

    def __init__(self, first_page: str = "map", **parameters: str) -> None:
        self.at = AppTest.from_file(str(ROOT / "app.py"), default_timeout=120)
        if first_page:
            self._switch(first_page)
        for key, value in parameters.items():
            self.at.query_params[key] = value
        self.run()

    def run(self) -> "App":
        self.at.run()
        assert not self.at.exception, [e.value for e in self.at.exception]
        return self

    def page(self, name: str) -> "App":
        self._switch(name)
        return self.run()

    def _switch(self, name: str) -> None:
        """Go to a page by its address; AppTest has a public call for pages that are files alone."""
        self.at._page_hash = calc_hash({"learn": "start"}.get(name, name))

    @property
    def state(self):  # noqa: ANN201  (AppTest's session state has no public type)
        return self.at.session_state

    def number(self, name: str):  # noqa: ANN201  (AppTest's widgets have no public type)
        """The number input of the block: `start` or `n`."""
        return next(w for w in self.at.number_input if w.label == name)

    def click(self, key: str) -> "App":
        self.at.button(key=key).click()
        return self.run()

    def finish(self, kind: str) -> JobState:
        """Wait for the newest job of a kind, and let the page see how it ended."""
        found = bench().jobs.wait(self.state["jobs"][kind], JOB_SECONDS)
        assert found is not None
        assert not found.live, found
        self.run()
        return found

    @property
    def errors(self) -> list[str]:
        return [plain(e.value) for e in self.at.error]

    @property
    def words(self) -> str:
        """Everything the page says in text, without its markup."""
        kinds = (self.at.markdown, self.at.caption, self.at.subheader, self.at.text, self.at.warning, self.at.success)
        return "\n".join(plain(str(e.value)) for kind in kinds for e in kind)


def colour(page: App, what: str) -> App:
    page.at.selectbox(key=s.CRITERION).set_value(what)
    return page.run()


def outlined(page: App) -> list[list[int]]:
    """Return [start, n] of the block that each map of the page outlines."""
    found = [json.loads(pane.proto.json) for pane in page.at.get("bidi_component")]
    return [pane["chosen"] for pane in found if "chosen" in pane]


def view(page: App, what: str) -> App:
    next(w for w in page.at.segmented_control if w.key == s.VIEW).set_value(what)
    return page.run()


ROWS = [
    {"goal": "The river carries", "sol1": "what the hills let go", "sol2": "nothing", "label": 0},
    {"goal": "The mill turns it", "sol1": "away", "sol2": "into bread", "label": 1},
    {"goal": "What the hills", "sol1": "let go", "sol2": "turn", "label": 0},
]


def disabled_widgets(page: App) -> list[tuple[str, str]]:
    """Return the label and the help of everything on a page that is disabled: buttons, popovers, inputs, choices."""
    protos = [getattr(node, "proto", None) for node in page.at._tree]  # all elements; its public lists are by kind
    protos = [proto.popover if type(proto).__name__ == "Block" else proto for proto in protos]
    return [(proto.label, proto.help) for proto in protos if getattr(proto, "disabled", False)]
