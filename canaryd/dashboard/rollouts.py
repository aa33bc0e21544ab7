"""One rollout as its page shows it: the story of its records and its charts, kept while somebody looks.

Only new records are read, and what costs much is made the less often: the pause is several times what it took.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from threading import Lock
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from canaryd import charts
from canaryd.bodies import Body
from canaryd.dashboard import view
from canaryd.dashboard.feed import Feed
from canaryd.dashboard.live import Topic
from canaryd.model import Answer, Override, Record
from canaryd.story import QUIET_KINDS, Story

KEPT = 16  # rollouts
UNSEEN = 120.0  # seconds after which one that nobody looks at is forgotten
MOST = 2000  # records of one
OLDER = 20_000  # that are searched for a rollout of long ago
BULKY = ("history", "workings")  # parts of a body that looks which changed nothing need only when new
NEWER = 40  # records that are looked through for new ones
SHOWN = 200  # decisions in the log
PAUSE = 9  # times as long as the last look took nothing is made anew
WIDTH = 780  # of a chart, about as wide as its place
PARTS = ("top", "weight", "metrics", "findings", "traces", "log", "people")


@dataclass
class Page:
    """One rollout while it is looked at."""

    key: str
    rollout: str  # "" is whichever is the latest
    topic: Topic = field(default_factory=Topic)
    records: Sequence[Record] = ()  # newest first
    story: Story | None = None
    body: Body | None = None
    seen: object = None  # what it was made from
    told: str = ""  # id of the latest decision that who listens has heard of
    due: float = 0.0  # on the clock that never goes back
    used: float = 0.0  # the same
    searched: bool = False  # among all records that are kept
    lock: Lock = field(default_factory=Lock)

    @property
    def is_known(self) -> bool:
        return self.story is not None and bool(self.story.moments)


class Rollouts:
    """The pages that were asked for lately. Safe to use from several threads."""

    def __init__(self, feed: Feed, env: Environment, base: str, now: Callable[[], datetime]) -> None:
        self._feed, self._base, self._now = feed, base, now
        self._templates = {name: env.get_template(f"part_{name}.html") for name in PARTS}
        self._pages: OrderedDict[tuple[str, str], Page] = OrderedDict()
        self._lock = Lock()

    def page(self, key: str, rollout: str) -> Page:
        """The page, not necessarily made yet."""
        with self._lock:
            page = self._pages.setdefault((key, rollout), Page(key, rollout))
            page.used = time.monotonic()
            self._pages.move_to_end((key, rollout))
            while len(self._pages) > KEPT or page.used - next(iter(self._pages.values())).used > UNSEEN:
                self._pages.popitem(last=False)
            return page

    def refresh(self, page: Page, body: Body | None, *, at_once: bool = False) -> None:
        """Make it anew where something is new. Raises CanarydError when it
        cannot be read."""
        with page.lock:
            began = page.used = time.monotonic()
            if body is page.seen and page.story is not None and not at_once:
                return
            if began < page.due and not at_once:
                return
            page.records = self._newest(page)
            said = self._feed.said(page.key, limit=50)
            mine = self._mine(page)
            story = Story.of(mine, self._feed.canary(page.key), rollout=page.rollout, now=self._now())
            page.story, page.body, page.seen = story, self._current(story, body), body
            page.topic.put(self._parts(page, story, said), says=_news(page))
            page.due = time.monotonic() + PAUSE * (time.monotonic() - began)

    def _newest(self, page: Page) -> Sequence[Record]:
        """All records, of which the known ones need not be read again."""
        known = {r.id for r in page.records}
        newer = self._feed.records(page.key, limit=NEWER) if known else ()
        fresh = [r for r in newer if r.id not in known]
        if known and len(fresh) < len(newer):
            again = {r.id: r for r in newer}  # what was found out after a decision is put into its record
            return _slim([*fresh, *(again.get(r.id, r) for r in page.records)][:MOST])
        found = self._feed.records(page.key, limit=MOST)
        if page.rollout and len(found) >= MOST and not _has(found, page.rollout) and not page.searched:
            page.searched = True
            mine = [r for r in self._feed.records(page.key, limit=OLDER) if r.body.get("rollout") == page.rollout]
            return _slim([*found[:1], *mine[:MOST]])
        return _slim(found)

    def _mine(self, page: Page) -> Sequence[Record]:
        """Of this rollout; of others one is enough to know that there is a newer one."""
        if not page.rollout:
            return page.records
        mine = [r for r in page.records if r.body.get("rollout") == page.rollout]
        return [*page.records[:1], *mine] if page.records[:1] != mine[:1] else mine

    def _current(self, story: Story, body: Body | None) -> Body:
        """What is so now where this is the rollout under way, else how it ended. An outline says less than a record."""
        if body is None or not story.moments:
            return body or story.latest
        return body if body.get("rollout") == story.rollout and "evidence" in body else story.latest

    def _parts(self, page: Page, story: Story, said: Sequence[tuple[Override, Answer | None]]) -> dict[str, str]:
        assert page.body is not None
        mine = [(word, answer) for word, answer in said if not word.revision or word.revision == story.revision]
        shared: dict[str, Any] = {
            "story": story,
            "body": page.body,
            "row": view.row(page.key, page.body),
            "base": self._base,
            "view": view,
            "said": mine,
            "moments": list(reversed(story.key_moments))[:SHOWN],
            "quiet": len(story.moments) - len(story.key_moments),
            "charts": _Charts(story),
        }
        return {name: template.render(shared) for name, template in self._templates.items()}


class _Charts:
    """The pictures, for templates; what `canaryd.charts` makes is escaped there."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def weight(self) -> Markup:
        return Markup(charts.weight(self._story, width=WIDTH, height=190))  # noqa: S704

    def evidence(self) -> Markup:
        return Markup(charts.evidence(self._story, width=WIDTH, height=190))  # noqa: S704

    def share(self) -> Markup:
        return Markup(charts.share(self._story, width=WIDTH, height=170))  # noqa: S704

    def difference(self, metric: Any) -> Markup:
        return Markup(charts.difference(self._story, metric, width=WIDTH, height=230))  # noqa: S704


def _has(records: Sequence[Record], rollout: str) -> bool:
    return any(r.body.get("rollout") == rollout for r in records)


def _slim(records: Sequence[Record]) -> Sequence[Record]:
    """Without what takes much room and is shown of the newest only."""
    return [*records[:1], *(_lean(r) for r in records[1:])]


def _lean(record: Record) -> Record:
    body = record.body
    if str(record.kind) not in QUIET_KINDS or not any(name in body for name in BULKY):
        return record
    return replace(record, body={k: v for k, v in body.items() if k not in BULKY})


def _news(page: Page) -> list[str]:
    """The latest decision that changed something, for who listens, once."""
    moments = page.story.key_moments if page.story else ()
    before, page.told = page.told, moments[-1].id if moments else ""
    return [moments[-1].sentence] if moments and before not in ("", page.told) else []
