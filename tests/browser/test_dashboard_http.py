"""What the dashboard answers to whom, without a browser: doors, forms, limits, headers, streams."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from stage import TOKENS, Make, Stage, World, canary, fleet, spec
from structlog.testing import capture_logs
from talk import HTML, Stream, ask, form_token, sign_in

from canaryd.config.dashboard import Auth, Proxy
from canaryd.dashboard.auth import Doorkeeper
from canaryd.dashboard.feed import Lead
from canaryd.errors import DashboardError
from canaryd.model import Phase

OPERATOR, VIEWER = TOKENS["anna"][1], TOKENS["vera"][1]


@pytest.fixture(scope="module")
def stage(staged: Make) -> Stage:
    """A rollout of api at its first steps; nothing else is going on. Actions are allowed."""
    made = staged(actions=True)
    made.turn(3)
    made.world.start("7f3c", "api")
    made.turn(6)
    return made


@pytest.fixture
def fresh(make_stage: Make) -> Stage:
    """The same for one test that changes it."""
    made = make_stage(actions=True)
    made.turn(3)
    made.world.start("7f3c", "api")
    made.turn(6)
    return made


def word(stage: Stage, session: dict[str, str], **fields: str) -> dict[str, str]:
    """The fields of a form that would pause api."""
    page = f"/canaries/api/rollouts/{stage.world.state('api').rollout}"
    given = {"action": "pause", "reason": "lunch", "revision": "7f3c"}
    return {"form": form_token(stage.url, session, page), **given, **fields}


# ── who is let in ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path", ["/", "/canaries/api", "/canaries/api/rollouts/api-1", "/events", "/session", "/nowhere"]
)
def test_nobody_sees_anything_without_signing_in(stage: Stage, path: str) -> None:
    machine, person = ask(stage.url, path), ask(stage.url, path, **HTML)
    assert (machine.status, person.status) == (401, 303)
    assert person.headers["location"].startswith("/login?next=%2F")
    assert b"api" not in machine.body + person.body


def test_a_wrong_token_opens_nothing_and_is_written_nowhere(make_stage: Make) -> None:
    stage = make_stage()
    with capture_logs() as logs:
        answers = [ask(stage.url, "/login", form={"token": "a-wrong-token-that-is-secret"}) for _ in range(12)]
    assert [a.status for a in answers] == [403] * 10 + [429] * 2
    assert "This token is not known." in answers[0].text
    assert "set-cookie" not in answers[0].headers
    assert "secret" not in f"{logs}{[a.text for a in answers]}"
    assert ask(stage.url, "/", authorization="Bearer " + OPERATOR).status == 429  # from this address for a while


def test_a_session_is_a_cookie_that_scripts_and_other_sites_cannot_use(stage: Stage, make_stage: Make) -> None:
    plain = ask(stage.url, "/login?next=/canaries/api", form={"token": OPERATOR})
    assert (plain.status, plain.headers["location"]) == (303, "/canaries/api")
    said = plain.headers["set-cookie"].lower()
    assert "httponly" in said
    assert "samesite=strict" in said
    assert "path=/" in said
    assert OPERATOR.lower() not in said
    behind = make_stage(external_url="https://ops.example.com/canaryd")
    secure = ask(behind.url, "/login", form={"token": OPERATOR}).headers
    assert secure["set-cookie"].startswith("__Secure-canaryd=")
    assert "secure" in secure["set-cookie"].lower().split("; ")
    assert "Path=/canaryd" in secure["set-cookie"]
    assert secure["strict-transport-security"] == "max-age=31536000"


@pytest.mark.parametrize(
    "there", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)", "/\tx", ""]
)
def test_signing_in_never_leads_to_another_site(stage: Stage, there: str) -> None:
    answer = ask(
        stage.url,
        f"/login?next={quote(there)}",
        form={"token": OPERATOR},
    )
    assert answer.headers["location"] == "/"


def test_a_session_outlives_a_restart_and_ends_with_its_time_or_its_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"anna operator {OPERATOR}\nvera viewer {VIEWER}\n")
    file.chmod(0o600)
    auth = Auth(tokens_file=str(file), session=timedelta(hours=1))
    door = Doorkeeper(auth)
    anna = door.of_token(OPERATOR)
    assert anna is not None
    cookie = door.begin(anna, 1000.0)
    again = Doorkeeper(auth)
    found = again.of_session(cookie, 1001.0)
    assert found is not None
    assert (found.name, found.role) == ("anna", "operator")
    assert again.of_session(cookie, 1000.0 + 3600) is None
    head, _, tail = cookie.rpartition(".")
    assert again.of_session(f"{head}.{'0' * len(tail)}", 1001.0) is None
    as_vera = cookie.replace(cookie.split(".")[1], door.begin(door.of_token(VIEWER) or anna, 1000.0).split(".")[1])
    assert again.of_session(as_vera, 1001.0) is None
    file.write_text(f"vera viewer {VIEWER}\n")
    assert again.of_session(cookie, 1001.0) is None
    assert again.of_token(OPERATOR) is None
    file.unlink()
    assert again.of_token(VIEWER) is None


def test_hashed_tokens_work_and_a_session_of_one_needs_the_key_of_its_file(tmp_path: Path) -> None:
    from hashlib import sha256

    file, key = tmp_path / "tokens", tmp_path / "key"
    file.write_text(f"anna operator sha256:{sha256(OPERATOR.encode()).hexdigest()}\n")
    file.chmod(0o644)  # a digest opens nothing
    key.write_text("k" * 40)
    key.chmod(0o600)
    with_key = Auth(tokens_file=str(file), session_key_file=str(key))
    door = Doorkeeper(with_key)
    anna = door.of_token(OPERATOR)
    assert anna is not None
    cookie = door.begin(anna, 0.0)
    assert Doorkeeper(with_key).of_session(cookie, 1.0) is not None
    assert Doorkeeper(Auth(tokens_file=str(file))).of_session(cookie, 1.0) is None


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        pytest.param("anna operator short", 0o600, "tokens:1: the token of anna is too short", id="short"),
        pytest.param("anna boss " + OPERATOR, 0o600, "tokens:1: the role of anna is not known", id="role"),
        pytest.param("\nanna operator", 0o600, "tokens:2: 2 words; a line is NAME ROLE TOKEN", id="words"),
        pytest.param(f"a viewer {VIEWER}\na viewer {VIEWER}", 0o600, "tokens:2: a has a line already", id="twice"),
        pytest.param("anna operator " + OPERATOR, 0o604, "tokens:1: everybody on this machine may read", id="open"),
        pytest.param("anna operator " + OPERATOR, 0o622, "others may write it", id="writable"),
        pytest.param("# nobody", 0o600, "0 people", id="nobody"),
        pytest.param("anna operator sha256:ABC", 0o600, "64 hexadecimal digits", id="digest"),
    ],
)
def test_a_file_of_tokens_that_is_wrong_is_refused_by_its_line_and_never_quoted(
    tmp_path: Path, text: str, mode: int, words: str
) -> None:
    file = tmp_path / "tokens"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(DashboardError) as error:
        Doorkeeper(Auth(tokens_file=str(file)))
    assert words in str(error.value)
    assert OPERATOR not in str(error.value)


def test_a_proxys_headers_are_believed_from_the_proxy_alone(make_stage: Make) -> None:
    def proxied(trusted: str, **headers: str) -> Any:
        auth = {"proxy": Proxy(trusted=(trusted,), operators=("sre",), viewers=("staff", "sre"))}
        return ask(make_stage(auth=auth, actions=True).url, "/session", **headers)

    assert proxied("10.1.0.0/16", x_forwarded_user="anna", x_forwarded_groups="sre").status == 403
    assert proxied("127.0.0.1", x_forwarded_user="anna", x_forwarded_groups="sre,x").json == {
        "name": "anna", "role": "operator"
    }  # fmt: skip
    assert proxied("127.0.0.0/8", x_forwarded_user="vera", x_forwarded_groups="staff").json["role"] == "viewer"
    assert proxied("127.0.0.1", x_forwarded_user="eve", x_forwarded_groups="guests").status == 403
    assert proxied("127.0.0.1", x_forwarded_groups="sre").status == 403


def test_on_loopback_for_everybody_another_sites_name_is_refused(make_stage: Make) -> None:
    stage = make_stage(auth={"anonymous": "viewer"})
    assert ask(stage.url, "/").status == 200
    assert ask(stage.url, "/", host="evil.example").status == 421
    assert ask(stage.url, "/", host="localhost:9096").status == 200


# ── what a client gets ───────────────────────────────────────────────────────────────────────────────────────


def test_every_answer_says_what_a_browser_may_do_with_it(stage: Stage) -> None:
    session = sign_in(stage.url, VIEWER)
    for path in ("/", "/login", "/nowhere", "/canaries/api/rollouts/api-1", "/canaries/gone", "/static/none.js"):
        headers = ask(stage.url, path, **HTML, **session).headers
        policy = dict(part.partition(" ")[::2] for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_a_defect_is_a_number_for_the_client_and_a_traceback_for_the_log(make_stage: Make) -> None:
    stage = make_stage()
    session = sign_in(stage.url, VIEWER)
    stage.feed.by_hand = {"api": 1}  # type: ignore[dict-item]  # no store gives such a body
    with capture_logs() as logs:
        answer = ask(stage.url, "/", **session)
    assert answer.status == 500
    assert "Attribute" not in answer.text
    assert "Traceback" not in answer.text
    (line,) = [one for one in logs if one["event"] == "page failed"]
    assert line["number"] in answer.text


def test_what_cannot_be_read_is_said_on_the_page_and_the_rest_stays(make_stage: Make) -> None:
    stage = make_stage()
    session = sign_in(stage.url, VIEWER)
    stage.turn(1)
    assert "api" in ask(stage.url, "/", **HTML, **session).text
    stage.feed.broken = "the file is damaged <b>"
    stage.feed.now_lead = Lead(leading=False, holder="canaryd-7", problems=("api.yaml:3: spec: <i>",))
    page = ask(stage.url, "/", **HTML, **session).text
    assert "the file is damaged &lt;b&gt;" in page
    assert "canaryd-7 decides" in page
    assert "api.yaml:3: spec: &lt;i&gt;" in page
    assert 'data-k="api"' in page


def test_a_request_is_small(stage: Stage) -> None:
    assert ask(stage.url, "/login", form={"token": "x" * 20_000}).status == 413
    host, port = stage.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        head = f"POST /login HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\n"
        raw.sendall((head + "content-type: application/x-www-form-urlencoded\r\n\r\n").encode())
        chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
        try:
            for _ in range(8):
                raw.sendall(chunk)
        except OSError:
            pass  # it has hung up
        assert b" 413 " in raw.recv(4096)


def test_a_request_that_is_wrong_about_its_length_is_refused(stage: Stage) -> None:
    host, port = stage.url.removeprefix("http://").split(":")
    kind = "content-type: application/x-www-form-urlencoded\r\n"
    for length in ("5x", "99999999999999999999", "-1"):
        with socket.create_connection((host, int(port)), timeout=5) as raw:
            raw.sendall(f"POST /login HTTP/1.1\r\nhost: {host}\r\n{kind}content-length: {length}\r\n\r\n".encode())
            assert raw.recv(4096).startswith(b"HTTP/1.1 4")
    assert ask(stage.url, "/events", method="HEAD", authorization="Bearer " + VIEWER).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_only_get_and_post_are_known(stage: Stage, method: str) -> None:
    assert ask(stage.url, "/", method=method, authorization="Bearer " + OPERATOR).status == 405


def test_it_works_below_a_path_whether_the_proxy_takes_it_away_or_not(make_stage: Make) -> None:
    stage = make_stage(external_url="https://ops.example.com/canaryd")
    root = stage.url.removesuffix("/canaryd")
    bearer = {"authorization": "Bearer " + VIEWER}
    for url in (root, stage.url):
        page = ask(url, "/", **HTML, **bearer)
        assert page.status == 200
        assert 'href="/canaryd/canaries/api"' in page.text
        assert 'data-events="/canaryd/events"' in page.text
        assert ask(url, "/static/" + page.text.partition("/canaryd/static/canaryd.")[2][:0] + "x").status == 404
    asset = ask(root, page.text.partition('<script src="/canaryd')[2].partition('"')[0])
    assert (asset.status, asset.headers["cache-control"]) == (200, "public, max-age=31536000, immutable")


# ── what is done ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_operators_word_goes_the_way_of_every_override_with_name_reason_and_revision(fresh: Stage) -> None:
    session = sign_in(fresh.url, OPERATOR)
    answer = ask(fresh.url, "/canaries/api/say", form=word(fresh, session), accept="application/json", **session)
    assert answer.status == 200
    assert answer.json["answer"] == "accepted"
    assert "paused by anna ('lunch')" in answer.json["sentence"]
    assert fresh.world.state("api").phase is Phase.PAUSED
    (said,) = fresh.world.store.audit("api")
    assert (said[0].by, said[0].reason, said[0].revision) == ("anna", "lunch", "7f3c")
    plain = ask(fresh.url, "/canaries/api/say", form=word(fresh, session, action="resume"), **HTML, **session)
    assert plain.status == 200  # without a script, as a page
    assert "goes on at" in plain.text
    assert fresh.world.state("api").phase is Phase.PROGRESSING


def test_a_word_for_a_revision_that_is_gone_is_refused_with_the_daemons_reason(stage: Stage) -> None:
    session = sign_in(stage.url, OPERATOR)
    form = word(stage, session, revision="6a1b")
    answer = ask(stage.url, "/canaries/api/say", form=form, accept="application/json", **session)
    assert (answer.status, answer.json["answer"]) == (409, "refused")
    assert "it was said for revision 6a1b, but 7f3c is being rolled out" in answer.json["sentence"]


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        pytest.param({"reason": " "}, 400, "The reason must be", id="no-reason"),
        pytest.param({"reason": "x" * 501}, 400, "The reason must be", id="long-reason"),
        pytest.param({"reason": "a\u202eb"}, 400, "readable characters", id="reason-that-deceives"),
        pytest.param({"revision": ""}, 400, "The revision must be given", id="no-revision"),
        pytest.param({"action": "skip"}, 400, "must be one of", id="not-offered"),
        pytest.param({"action": "drop table"}, 400, "must be one of", id="no-action"),
        pytest.param({"id": "../../x"}, 400, "The id must be", id="id"),
        pytest.param({"form": "0" * 64}, 403, "This form is too old", id="forged-form"),
        pytest.param({"form": ""}, 403, "This form is too old", id="no-form"),
    ],
)
def test_a_form_that_is_not_right_does_nothing(stage: Stage, fields: dict[str, str], status: int, words: str) -> None:
    session = sign_in(stage.url, OPERATOR)
    before = len(stage.world.store.audit("api"))
    answer = ask(stage.url, "/canaries/api/say", form=word(stage, session, **fields), **session)
    assert (answer.status, words in answer.text) == (status, True), answer.text
    assert len(stage.world.store.audit("api")) == before


def test_a_form_from_another_site_or_another_persons_does_nothing(stage: Stage) -> None:
    anna = sign_in(stage.url, OPERATOR)
    form = word(stage, anna)
    elsewhere = [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "cross-site"}]
    for headers in elsewhere:
        assert ask(stage.url, "/canaries/api/say", form=form, **anna, **headers).status == 403
    again = sign_in(stage.url, OPERATOR)  # another session of the same person
    assert ask(stage.url, "/canaries/api/say", form=form, **again).status == 403


def test_who_may_only_look_sees_no_buttons_and_cannot_act(stage: Stage, make_stage: Make) -> None:
    vera = sign_in(stage.url, VIEWER)
    page = ask(stage.url, "/canaries/api/rollouts/api-1", **HTML, **vera).text
    assert 'class="acts"' not in page
    form = {"action": "abort", "reason": "x", "revision": "7f3c", "form": form_token(stage.url, vera)}
    answer = ask(stage.url, "/canaries/api/say", form=form, **vera)
    assert (answer.status, "only an operator" in answer.text) == (403, True)
    off = make_stage(stage.world, actions=False)
    bearer = {"authorization": "Bearer " + OPERATOR}
    answer = ask(off.url, "/canaries/api/say", form=form, **bearer)
    assert (answer.status, "switched off" in answer.text) == (403, True)
    assert 'class="acts"' not in ask(off.url, "/canaries/api/rollouts/api-1", **HTML, **bearer).text


def test_the_same_form_sent_twice_is_one_word(fresh: Stage) -> None:
    session = sign_in(fresh.url, OPERATOR)
    form = word(fresh, session, action="promote", id="0" * 32)
    before = fresh.world.state("api").step
    for _ in range(2):
        assert ask(fresh.url, "/canaries/api/say", form=form, **session).status == 200
    assert fresh.world.state("api").step == before + 1


def test_a_program_acts_with_its_token_and_not_without_end(fresh: Stage) -> None:
    bearer = {"authorization": "Bearer " + OPERATOR}
    form = {"action": "resume", "reason": "script", "revision": "7f3c"}
    answers = [ask(fresh.url, "/canaries/api/say", form=form, **bearer).status for _ in range(22)]
    assert set(answers[:20]) == {409}  # it is not paused
    assert 429 in answers[20:]


# ── live ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_page_that_looks_on_gets_what_changed_and_nothing_else(fresh: Stage) -> None:
    bearer = {"authorization": "Bearer " + VIEWER}
    mark = ask(fresh.url, "/", **HTML, **bearer).text.partition('data-since="')[2].partition('"')[0]
    stream = Stream(fresh.url, f"/events?since={mark}", **bearer)
    try:
        name, _, hello = stream.event()
        assert (name, set(hello)) == ("hello", {"form", "version"})
        fresh.turn(1)
        id_, news = stream.news()
        assert set(news["parts"]) == {"r:api"}  # pay rests
        assert id_ != mark
        fresh.world.errors["api-b"] = 0.4
        fresh.turn(2)
        _, news = stream.news()
        assert 'data-g="back"' in news["parts"]["r:api"]
        assert news["says"] == ["api: rolled back"]
    finally:
        stream.close()
    late = Stream(fresh.url, "/events", last_event_id=id_, **bearer)
    assert set(late.news()[1]["parts"]) == {"r:api", "head"}
    late.close()
    foreign = Stream(fresh.url, "/events", last_event_id="0badboot-7", **bearer)
    _, news = foreign.news()
    assert news["all"]
    assert set(news["parts"]) == {"r:api", "r:pay", "head", "lead"}
    foreign.close()


def test_no_page_gets_more_than_one_message_a_second(fresh: Stage) -> None:
    bearer = {"authorization": "Bearer " + VIEWER}
    mark = ask(fresh.url, "/", **HTML, **bearer).text.partition('data-since="')[2].partition('"')[0]
    stream = Stream(fresh.url, f"/events?since={mark}", **bearer)
    stop = threading.Event()

    def churn() -> None:
        while not stop.wait(0.05):
            fresh.feed.by_hand = {
                "api": {"canary": "api", "phase": "Progressing", "step": 0, "sentence": f"{time.time()}"}
            }

    busy = threading.Thread(target=churn)
    busy.start()
    try:
        times = []
        for _ in range(4):
            stream.news()
            times.append(time.monotonic())
    finally:
        stop.set()
        busy.join()
        stream.close()
    assert times[-1] - times[0] > 0.8 * 3


def test_only_so_many_pages_can_look_on_and_one_that_leaves_makes_room(stage: Stage) -> None:
    bearer = {"authorization": "Bearer " + VIEWER}
    streams: list[Stream] = []
    try:
        for _ in range(64):
            streams.append(Stream(stage.url, **bearer))
        assert {s.status for s in streams} == {200}
        full = ask(stage.url, "/events", **bearer)
        assert (full.status, full.headers["retry-after"]) == (503, "30")
        assert ask(stage.url, "/", **HTML, **bearer).status == 200
    finally:
        for stream in streams:
            stream.close()
    deadline = time.monotonic() + 5
    while (again := Stream(stage.url, **bearer)).status != 200 and time.monotonic() < deadline:
        again.close()
        time.sleep(0.05)
    assert again.status == 200
    again.close()


def test_streams_end_with_the_daemon_at_once(make_stage: Make) -> None:
    stage = make_stage()
    stream = Stream(stage.url, authorization="Bearer " + VIEWER)
    stream.news()
    began = time.monotonic()
    stage.server.close()
    with pytest.raises((EOFError, ConnectionError)):
        stream.news(5)
    assert time.monotonic() - began < 4
    stream.close()


# ── size ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_five_hundred_canaries_are_less_than_five_hundred_kilobytes(make_stage: Make) -> None:
    stage = make_stage(World(canary("api", **spec())))
    stage.feed.by_hand = fleet(500)
    bearer = {"authorization": "Bearer " + VIEWER}
    ask(stage.url, "/", **HTML, **bearer)
    page = ask(stage.url, "/", **HTML, **bearer)
    assert page.text.count("<tr role") == 502  # with api and the heading
    assert len(page.body) <= 500_000
    assert page.text.count("<script") == 1


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return cert, key


def test_with_a_certificate_of_its_own_it_speaks_tls_alone(make_stage: Make, certificate: tuple[str, str]) -> None:
    from canaryd.config.dashboard import Tls

    cert, key = certificate
    stage = make_stage(tls=Tls(cert_file=cert, key_file=key))
    host, port = "127.0.0.1", stage.server.address[1]
    trusting = ssl.create_default_context(cafile=cert)
    with socket.create_connection((host, port), 5) as raw, trusting.wrap_socket(raw, server_hostname=host) as secure:
        secure.sendall(b"GET /login HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: secure.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"strict-transport-security" in answer
    with socket.create_connection((host, port), 5) as raw:
        raw.sendall(b"GET /login HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200" not in raw.recv(100)


def test_a_certificate_that_is_not_there_is_named(make_stage: Make, tmp_path: Path) -> None:
    from canaryd.config.dashboard import Tls

    gone = str(tmp_path / "gone.pem")
    with pytest.raises(DashboardError, match=r"dashboard\.tls: .*gone\.pem.*No such file"):
        make_stage(tls=Tls(cert_file=gone, key_file=gone))


def test_an_address_that_is_taken_is_named(make_stage: Make) -> None:
    from stage import MemoryFeed

    from canaryd.config.dashboard import Dashboard
    from canaryd.dashboard.server import Server

    stage = make_stage(auth={"anonymous": "viewer"})
    port = stage.server.address[1]
    taken = Dashboard(listen=f"127.0.0.1:{port}", auth=Auth(anonymous="viewer"))
    with pytest.raises(DashboardError, match=rf"dashboard\.listen: 127\.0\.0\.1:{port} cannot be listened on"):
        Server(taken, MemoryFeed(stage.world.store))
