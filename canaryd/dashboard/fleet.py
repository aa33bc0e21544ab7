"""All canaries as the overview shows them: one copy for everybody, made anew only where something changed."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock

from jinja2 import Environment
from markupsafe import Markup

from canaryd.bodies import Body
from canaryd.dashboard import view
from canaryd.dashboard.feed import Feed, Lead
from canaryd.dashboard.live import Topic
from canaryd.dashboard.view import Row
from canaryd.errors import CanarydError

ROW = "r:"  # before the key, in the name of a row's part
LISTENED = 40  # rows beyond which changes are not read out one by one


class Fleet:
    """`topic` has a part for each row, "head" with the counts and "lead" with what is wrong with the whole."""

    def __init__(self, feed: Feed, env: Environment, base: str) -> None:
        """`base`: what stands before every path."""
        self._feed, self._base = feed, base
        self._row = env.get_template("row.html")
        self._head, self._lead = env.get_template("head.html"), env.get_template("lead.html")
        self._bodies: Mapping[str, Body] = {}
        self._lock = Lock()
        self.rows: dict[str, Row] = {}
        self.topic = Topic()

    def refresh(self) -> None:
        """Look what is new. Never raises for what cannot be read: it is said on the page."""
        with self._lock:
            lead, trouble = self._feed.lead(), ""
            try:
                bodies = self._feed.bodies()
            except CanarydError as e:
                bodies, trouble = self._bodies, str(e)
            if trouble:
                lead = Lead(lead.leading, lead.holder, (trouble, *lead.trouble), lead.problems)
            changed = {k: view.row(k, b) for k, b in bodies.items() if self._bodies.get(k) is not b}
            gone = [k for k in self._bodies if k not in bodies]
            says = [text for k, one in changed.items() if (text := view.change(self.rows.get(k), one))]
            if not self._bodies or len(says) > LISTENED:
                says = []
            parts = {ROW + k: self._html(one) for k, one in changed.items() if one != self.rows.get(k)}
            self._bodies = bodies
            self.rows = {**{k: one for k, one in self.rows.items() if k in bodies}, **changed}
            parts["head"] = self._head.render(counts=view.counts(list(self.rows.values())), groups=view.GROUPS)
            parts["lead"] = self._lead.render(lead=lead)
            self.topic.put(parts, gone=[ROW + k for k in gone], says=says)

    def body(self, key: str) -> Body | None:
        return self._bodies.get(key)

    def html(self, key: str, *, hidden: bool = False) -> Markup:
        """The row of one canary."""
        text = self.topic[ROW + key]
        return Markup(text.replace("<tr ", "<tr hidden ", 1) if hidden else text)  # noqa: S704 - our template escapes

    def part(self, name: str) -> Markup:
        """ "head" or "lead"."""
        return Markup(self.topic[name])  # noqa: S704 - as above

    def _html(self, one: Row) -> str:
        return self._row.render(r=one, base=self._base)
