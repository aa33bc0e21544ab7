"""The pages: what is asked for by which path, and what people do. Everybody here has been let in by the guard."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

import structlog
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from canaryd import __version__, charts, render, report
from canaryd.config.dashboard import Dashboard
from canaryd.dashboard import view
from canaryd.dashboard.auth import Doorkeeper, Limit, Person
from canaryd.dashboard.feed import Feed
from canaryd.dashboard.fleet import Fleet
from canaryd.dashboard.guard import App, Guard, Receive, Scope, Send
from canaryd.dashboard.rollouts import Page, Rollouts
from canaryd.dashboard.stream import Hub, Watched
from canaryd.errors import CanarydError
from canaryd.model import Action, Answer, Override
from canaryd.story import Story

log = structlog.get_logger("canaryd.dashboard")

LONGEST = 500  # characters of a reason
PATIENCE = 5.0  # seconds in which a word is usually answered
LOOK = 0.1  # seconds between two looks for the answer
_REVISION = re.compile(r"[A-Za-z0-9][-._:/@+A-Za-z0-9]{0,199}")
_ID = re.compile(r"[0-9a-f]{32}")
ACTIONS = (Action.PROMOTE, Action.RESUME, Action.PAUSE, Action.ABORT, Action.RETRY)
TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
REPORTS = {"report": "text/html", "report.md": "text/markdown", "report.json": "application/json"}
REPORT_POLICY = "default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; frame-ancestors 'none'"
SORTS = ("urgency", "name", "weight", "age")


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a person's word."""

    answer: str  # accepted, refused, recorded
    sentence: str
    id: str = ""


class _Named:
    """Says in the scope that it is the application, so that a path nobody knows comes back as an exception."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "app": self}, receive, send)


class Pages:
    """Everything behind the guard. `app` is the ASGI application, guard and all."""

    def __init__(
        self,
        settings: Dashboard,
        feed: Feed,
        door: Doorkeeper,
        hub: Hub,
        *,
        now: Callable[[], datetime],
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._feed, self._door, self._hub = settings, feed, door, hub
        self._now, self._steady = now, steady
        self._base = settings.prefix
        self._files = _static()
        self._env = _environment(self._base, self._files)
        self.fleet = Fleet(feed, self._env, self._base)
        self.rollouts = Rollouts(feed, self._env, self._base, now)
        self._acts = Limit(burst=20, every=3.0)
        self._guard = Guard(self._routes(), settings, door, clock=lambda: self._now().timestamp(), steady=steady)

    @property
    def app(self) -> App:
        return self._guard

    def _routes(self) -> App:
        canary = ("/canaries/{name}", "/canaries/{namespace}/{name}")
        routes = [
            Route("/", self._overview),
            Route("/login", self._login, methods=["GET", "POST"]),
            Route("/logout", self._logout, methods=["POST"]),
            Route("/session", self._session),
            Route("/events", self._events),
            Route("/static/{name}", self._file),
            *(Route(f"{path}/rollouts/{{rollout}}", self._rollout) for path in canary),
            *(Route(f"{path}/rollouts/{{rollout}}/{{report}}", self._report) for path in canary),
            *(Route(f"{path}/say", self._say, methods=["POST"]) for path in canary),
            *(Route(path, self._canary) for path in canary),
        ]
        handlers = {HTTPException: self._failed, CanarydError: self._unread}
        # Not a whole Starlette: its outermost layer would answer what the guard has to answer.
        return _Named(ExceptionMiddleware(Router(routes), handlers=handlers))

    # ── what is looked at ────────────────────────────────────────────────────────────────────────────────────

    def _overview(self, request: Request) -> Response:
        self.fleet.refresh()
        asked = request.query_params
        group, words = asked.get("show", ""), asked.get("q", "")[:100]
        sort = asked.get("sort", "") if asked.get("sort") in SORTS else SORTS[0]
        order = sorted(self.fleet.rows.values(), key=_order(sort))
        hidden = {one.key for one in order if not _is_wanted(one, group, words)}
        return self._html(
            "overview.html",
            request,
            fleet=self.fleet,
            rows=order,
            hidden=hidden,
            groups=view.GROUPS,
            asked={"show": group if group in view.GROUPS else "", "q": words, "sort": sort},
            mark=self.fleet.topic.mark,
        )

    def _canary(self, request: Request) -> Response:
        """To the page of its latest rollout; one that never had one has a page of its own."""
        key, body = self._found(request)
        rollout = body.get("rollout")
        if rollout:
            return RedirectResponse(self._base + view.path_of(key, str(rollout)), 307)
        return self._shown(request, key, "")

    def _rollout(self, request: Request) -> Response:
        key, _ = self._found(request)
        return self._shown(request, key, request.path_params["rollout"])

    def _report(self, request: Request) -> Response:
        """The same rollout as one file, for a ticket or a printer."""
        kind = REPORTS.get(request.path_params["report"])
        if kind is None:
            raise HTTPException(404)
        key, _ = self._found(request)
        page = self._page(key, request.path_params["rollout"])
        if page.story is None or not page.is_known:
            raise HTTPException(404, "No decision of this rollout is kept.")
        nonce, at = secrets.token_urlsafe(16), self._now()
        headers = {"content-security-policy": REPORT_POLICY.format(nonce=nonce)}
        return Response(_written(kind, page.story, at, nonce), media_type=f"{kind}; charset=utf-8", headers=headers)

    def _shown(self, request: Request, key: str, rollout: str) -> Response:
        page = self._page(key, rollout)
        if rollout and not page.is_known:
            raise HTTPException(404, f"No decision of the rollout {rollout} is kept.")
        assert page.body is not None
        assert page.story is not None
        person = self._person(request)
        may_act = self._settings.actions and person is not None and person.may_act
        return self._html(
            "rollout.html",
            request,
            page=page,
            story=page.story,
            key=key,
            row=view.row(key, page.body),
            name=view.row(key, page.body).name,
            part=lambda name: Markup(page.topic[name]),  # noqa: S704 - made by our templates
            mark=page.topic.mark,
            acts=_acts(page) if may_act else [],
            report_path=self._base + view.path_of(key, page.story.rollout) + "/report",
            act_path=f"{self._base}{view.path_of(key)}/say",
            past=self._past(page),
            new_id=lambda: uuid.uuid4().hex,
            longest=LONGEST,
        )

    def _page(self, key: str, rollout: str) -> Page:
        page = self.rollouts.page(key, rollout)
        self.rollouts.refresh(page, self.fleet.body(key))
        return page

    def _past(self, page: Page) -> list[tuple[str, str]]:
        """(rollout, its page) of the other rollouts of this canary whose decisions are kept, newest first."""
        names = dict.fromkeys(str(r.body.get("rollout") or "") for r in page.records)
        shown = page.story.rollout if page.story else ""
        return [(n, self._base + view.path_of(page.key, n)) for n in names if n and n != shown][:12]

    def _found(self, request: Request) -> tuple[str, Mapping[str, Any]]:
        """The key that a path names, and what is known of that canary. Raises HTTPException."""
        self.fleet.refresh()
        key = "/".join(filter(None, (request.path_params.get("namespace"), request.path_params["name"])))
        body = self.fleet.body(key)
        if body is None:
            raise HTTPException(404, f"There is no canary {render.clean(key, 100)}.")
        return key, body

    async def _events(self, request: Request) -> Response:
        """The stream of one page."""
        if request.method == "HEAD":  # nothing would ever end it
            return Response(media_type="text/event-stream")
        if self._hub.is_full:
            return PlainTextResponse("Too many pages are open.\n", 503, {"retry-after": "30"})
        key, rollout = request.query_params.get("canary"), request.query_params.get("rollout", "")
        if key is None:
            watched = Watched(self.fleet.topic, self.fleet.refresh)
        else:
            await run_in_threadpool(self.fleet.refresh)
            if self.fleet.body(key) is None:
                raise HTTPException(404, "There is no such canary.")
            watched = await run_in_threadpool(self._watch, key, rollout)
        person, headers, peer = (
            self._person(request),
            dict(request.headers),
            request.client.host if request.client else "",
        )
        hello: dict[str, object] = {"form": person.form_token() if person else "", "version": __version__}
        mark = request.headers.get("last-event-id") or request.query_params.get("since", "")
        return StreamingResponse(
            self._hub.stream(watched, mark, hello, lambda: self._guard.who(peer, headers)[0] is not None),
            media_type="text/event-stream",
            headers={"x-accel-buffering": "no"},
        )

    def _watch(self, key: str, rollout: str) -> Watched:
        page = self._page(key, rollout)

        def refresh() -> None:
            self.fleet.refresh()
            self.rollouts.refresh(page, self.fleet.body(key))

        return Watched(page.topic, refresh)

    def _file(self, request: Request) -> Response:
        found = self._files.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404, "There is no such file.")
        kind = TYPES[request.path_params["name"].rpartition(".")[2]]
        return Response(found, media_type=kind, headers={"cache-control": "public, max-age=31536000, immutable"})

    # ── who ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _person(self, request: Request) -> Person | None:
        person = request.state.person
        return person if isinstance(person, Person) else None

    def _session(self, request: Request) -> Response:
        """Whether somebody is still signed in, for a page whose stream was refused."""
        person = self._person(request)
        return JSONResponse({"name": person.name if person else "", "role": person.role if person else ""})

    async def _login(self, request: Request) -> Response:
        there = _inside(request.query_params.get("next", ""))
        if not self._door.has_tokens or (self._person(request) is not None and request.method == "GET"):
            return RedirectResponse(self._base + there, 303)
        if request.method == "GET":
            return self._html("login.html", request, there=there, wrong="")
        address, at = request.state.peer, self._steady()
        if wait := self._guard.wrong.wait(address, at):
            return self._not_in(request, there, f"Too many wrong tokens. Try again in {wait:.0f} s.", 429)
        form = await _form(request)
        person = self._door.of_token(form.get("token", "").strip())
        if person is None:
            self._guard.wrong.spend(address, at)
            log.warning("wrong token", address=address)
            return self._not_in(request, there, "This token is not known.", 403)
        log.info("signed in", person=person.name, role=person.role, address=address)
        answer = RedirectResponse(self._base + there, 303)
        self._set_cookie(
            answer, self._door.begin(person, self._now().timestamp()), self._settings.auth.session.total_seconds()
        )
        return answer

    def _not_in(self, request: Request, there: str, wrong: str, status: int) -> Response:
        return self._html("login.html", request, status, there=there, wrong=wrong)

    async def _logout(self, request: Request) -> Response:
        person = self._person(request)
        if person is not None and not person.is_form_token((await _form(request)).get("form", "")):
            raise HTTPException(403, "This form is too old. Load the page again.")
        answer = RedirectResponse(f"{self._base}/login", 303)
        self._set_cookie(answer, "", 0)
        return answer

    def _set_cookie(self, answer: Response, value: str, seconds: float) -> None:
        answer.set_cookie(
            self._guard.cookie,
            value,
            max_age=int(seconds),
            path=self._base or "/",
            secure=self._settings.is_encrypted,
            httponly=True,
            samesite="strict",
        )

    # ── what is done ─────────────────────────────────────────────────────────────────────────────────────────

    async def _say(self, request: Request) -> Response:
        """A person's word: written down as the command line does, then the answer is waited for."""
        key, body = await run_in_threadpool(self._found, request)
        person, form = self._person(request), await _form(request)
        wants_json = "application/json" in request.headers.get("accept", "")
        said = await self._word(key, person, form)
        status = {"accepted": 200, "refused": 409, "recorded": 202}[said.answer]
        if wants_json:
            return JSONResponse({"answer": said.answer, "sentence": said.sentence, "id": said.id}, status)
        back = self._base + view.path_of(key, str(body.get("rollout") or ""))
        return self._html("said.html", request, status, said=said, back=back, name=view.row(key, body).name)

    async def _word(self, key: str, person: Person | None, form: Mapping[str, str]) -> Said:
        """Raises HTTPException for what is not even written down."""
        if not self._settings.actions:
            raise HTTPException(403, "Actions are switched off (dashboard.actions in canaryd.yaml).")
        if person is None or not person.may_act:
            raise HTTPException(403, "Your role is viewer; only an operator can do this.")
        if person.by_cookie and not person.is_form_token(form.get("form", "")):
            raise HTTPException(403, "This form is too old. Load the page again.")
        if wait := self._acts.spend(person.name, self._steady()):
            raise HTTPException(429, f"Too much at once. Try again in {wait:.0f} s.", {"retry-after": f"{wait:.0f}"})
        override = _override(person, form, self._now())
        try:
            await run_in_threadpool(self._feed.say, key, override)
        except CanarydError as e:
            raise HTTPException(503, f"It could not be written down: {e}") from e
        log.info("said", canary=key, action=str(override.action), by=person.name, revision=override.revision)
        answer = await self._heard(key, override.id)
        if answer is None:
            name = key.rpartition("/")[2]
            return Said(
                "recorded", f"Your {override.action} of {name} is written down; the answer will show here.", override.id
            )
        return Said("accepted" if answer.accepted else "refused", answer.sentence, override.id)

    async def _heard(self, key: str, id_: str) -> Answer | None:
        """What became of a word; None when it is not answered soon."""
        deadline = self._steady() + PATIENCE
        while self._steady() < deadline:
            for word, answer in await run_in_threadpool(lambda: self._feed.said(key, limit=10)):
                if word.id == id_ and answer is not None:
                    return answer
            await asyncio.sleep(LOOK)
        return None

    # ── how ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _html(self, template: str, request: Request, status: int = 200, **context: Any) -> Response:
        person = self._person(request)
        theme = request.cookies.get("canaryd_theme", "")
        shared = {
            "person": person if person is not None and person.name != "anonymous" else None,
            "form_token": person.form_token() if person else "",
            "signs_in": self._door.has_tokens,
            "theme": theme if theme in ("light", "dark") else "",
            "now": self._now(),
        }
        text = self._env.get_template(template).render({**shared, **context})
        return Response(text, status, media_type="text/html; charset=utf-8")

    def _failed(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {404: "There is no such page."}.get(error.status_code) if error.detail == "Not Found" else error.detail
        return self._sorry(request, error.status_code, words or str(error.status_code), error.headers or {})

    def _unread(self, request: Request, error: Exception) -> Response:
        return self._sorry(request, 503, f"It cannot be read now: {error}", {"retry-after": "5"})

    def _sorry(self, request: Request, status: int, words: str, headers: Mapping[str, str]) -> Response:
        if "text/html" in request.headers.get("accept", "") and getattr(request.state, "person", None) is not None:
            answer = self._html("sorry.html", request, status, words=words)
            answer.headers.update(headers)
            return answer
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"error": words}, status, headers)
        return PlainTextResponse(words + "\n", status, headers)


def _environment(base: str, files: Mapping[str, bytes]) -> Environment:
    """Templates of this package; everything that is put into them is escaped."""
    env = Environment(
        loader=PackageLoader("canaryd.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["clean"] = render.clean
    env.globals.update(
        base=base,
        version=__version__,
        static={_plain(name): f"{base}/static/{name}" for name in files},
    )
    return env


def _static() -> dict[str, bytes]:
    """Files by a name that changes with what is in them."""
    found = {
        entry.name: entry.read_bytes() for entry in resources.files("canaryd.dashboard").joinpath("static").iterdir()
    }
    found["charts.css"] = charts.CSS.encode()
    return {
        f"{stem}.{sha256(data).hexdigest()[:10]}.{kind}": data
        for name, data in found.items()
        for stem, _, kind in [name.rpartition(".")]
    }


def _written(kind: str, story: Story, at: datetime, nonce: str) -> str:
    """A report as HTML, Markdown or JSON."""
    if kind == "text/html":
        return report.html(story, at, nonce=nonce)
    if kind == "text/markdown":
        return report.markdown(story, at)
    return json.dumps(report.document(story, at), ensure_ascii=False, indent=2)


def _plain(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    return f"{stem.rpartition('.')[0]}.{kind}"


def _order(sort: str) -> Callable[[view.Row], Any]:
    if sort == "name":
        return lambda r: (r.name, r.key)
    if sort == "weight":
        return lambda r: (-r.desired, r.order)
    if sort == "age":
        return lambda r: (r.since == "", _backwards(r.since), r.key)
    return lambda r: r.order


def _backwards(text: str) -> list[int]:
    return [-ord(c) for c in text]


def _is_wanted(one: view.Row, group: str, words: str) -> bool:
    if group in view.GROUPS and one.group != group:
        return False
    text = " ".join((one.key, one.phase, one.verdict, one.revision, one.sentence, one.decided)).lower()
    return all(word in text for word in words.lower().split())


def _acts(page: Page) -> list[dict[str, Any]]:
    """What can be done, each with the phases in which its form is shown."""
    assert page.body is not None
    now = view.actions(page.body)
    if page.story is None or not page.story.revision or page.body.get("rollout") != page.story.rollout:
        return []
    return [
        {
            "action": str(action),
            "phases": view.phases_of(action),
            "shown": action in now,
            "full": action is Action.PROMOTE,
        }
        for action in ACTIONS
    ]


def _inside(there: str) -> str:
    """A path of this dashboard, never another site."""
    if (
        not there.startswith("/")
        or there.startswith("//")
        or "\\" in there
        or not there.isprintable()
        or len(there) > 2000
    ):
        return "/"
    return there


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form; the guard has bounded its size. Raises HTTPException."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Send the fields of a form.")
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=20)
    except (UnicodeDecodeError, ValueError):
        raise HTTPException(400, "This is no form.") from None
    return {name: values[-1] for name, values in fields.items()}


def _override(person: Person, form: Mapping[str, str], at: datetime) -> Override:
    """Raises HTTPException that says which field is wrong."""
    try:
        action = Action(form.get("action", ""))
    except ValueError:
        raise HTTPException(400, f"The action must be one of {', '.join(ACTIONS)}.") from None
    if action not in ACTIONS:
        raise HTTPException(400, f"The action must be one of {', '.join(ACTIONS)}.")
    reason, revision, id_ = (form.get(name, "").strip() for name in ("reason", "revision", "id"))
    if not reason or len(reason) > LONGEST or render.is_deceptive(reason) or "\n" in reason:
        raise HTTPException(400, f"The reason must be one line of 1 to {LONGEST} readable characters.")
    if not _REVISION.fullmatch(revision):
        raise HTTPException(400, "The revision must be given, as a precondition.")
    if id_ and not _ID.fullmatch(id_):
        raise HTTPException(400, "The id must be 32 hexadecimal digits.")
    return Override(
        id=id_ or uuid.uuid4().hex,
        action=action,
        revision=revision,
        by=person.name,
        reason=reason,
        at=at,
        full=action is Action.PROMOTE and form.get("full") == "yes",
    )
