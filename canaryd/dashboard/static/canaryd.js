// What makes the pages live. They work without it; it fetches nothing but this dashboard's own stream and answers.
"use strict";
(() => {
  const root = document.documentElement, body = document.body, base = root.dataset.base;
  const $ = (id) => document.getElementById(id);
  root.classList.add("js");

  // ── times ─────────────────────────────────────────────────────────────────────────────────────────────────
  let drift = 0; // this clock minus the daemon's, ms
  const made = document.querySelector(".foot time");
  if (made) {
    const entry = performance.getEntriesByType("navigation")[0];
    const answered = performance.timeOrigin + (entry ? entry.responseStart : 0);
    const apart = answered - Date.parse(made.dateTime);
    if (Math.abs(apart) > 5000) drift = apart;
  }
  const span = (s) => {
    s = Math.max(0, Math.round(s));
    if (s < 60) return s + " s";
    if (s < 3600) return Math.floor(s / 60) + " min";
    if (s < 86400) return Math.floor(s / 3600) + " h " + (Math.floor(s / 60) % 60) + " min";
    return Math.floor(s / 86400) + " d";
  };
  const two = (n) => String(n).padStart(2, "0");
  function tell(scope) {
    const now = Date.now() - drift;
    for (const t of scope.querySelectorAll("time[data-age]")) put(t, span((now - Date.parse(t.dateTime)) / 1000));
    for (const t of scope.querySelectorAll("time[data-left]")) {
      const left = Math.max(0, Math.round((Date.parse(t.dateTime) - now) / 1000));
      put(t, left < 3600 ? two(Math.floor(left / 60)) + ":" + two(left % 60) : span(left));
    }
    for (const t of scope.querySelectorAll("time[data-clock]:not([data-done])")) {
      const at = new Date(t.dateTime);
      if (isNaN(at)) continue;
      t.dataset.done = "";
      t.title = t.dateTime;
      const day = at.toDateString() === new Date().toDateString() ? "" : at.getFullYear() + "-" + two(at.getMonth() + 1) + "-" + two(at.getDate()) + " ";
      t.textContent = day + two(at.getHours()) + ":" + two(at.getMinutes()) + ":" + two(at.getSeconds());
    }
  }
  function reach(scope) { // what can be scrolled can be reached by keyboard, and nothing else
    for (const box of scope.querySelectorAll(".plot, .scroll, .log")) {
      if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  }
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  tell(document);
  reach(document);
  addEventListener("resize", () => reach(document));
  setInterval(() => { if (!document.hidden) tell(document); }, 1000);

  // ── light or dark ─────────────────────────────────────────────────────────────────────────────────────────
  const themeButton = $("theme");
  function theme() {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    document.cookie = "canaryd_theme=" + root.dataset.theme + ";path=" + (base || "/") + ";max-age=31536000;samesite=strict";
  }
  themeButton.hidden = false;
  themeButton.addEventListener("click", theme);

  // ── filter and order ──────────────────────────────────────────────────────────────────────────────────────
  const rows = $("rows"), query = $("q"), shown = $("show"), order = $("sort"), rank = { attention: 0, rolling: 1, back: 2, rest: 3 };
  const orders = {
    urgency: (a, b) => rank[a.dataset.g] - rank[b.dataset.g] || compare(a.dataset.k, b.dataset.k),
    name: (a, b) => compare(a.dataset.k.split("/").pop(), b.dataset.k.split("/").pop()) || compare(a.dataset.k, b.dataset.k),
    weight: (a, b) => b.dataset.w - a.dataset.w || orders.urgency(a, b),
    age: (a, b) => compare(b.dataset.t, a.dataset.t) || compare(a.dataset.k, b.dataset.k),
  };
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const said = new WeakMap(); // row -> its words
  function words(row) {
    if (!said.has(row)) said.set(row, (row.dataset.k + " " + row.textContent).toLowerCase());
    return said.get(row);
  }
  function sift() {
    const wanted = query.value.toLowerCase().split(/\s+/).filter(Boolean), group = shown.value;
    let left = 0;
    for (const row of rows.children) {
      row.hidden = (group && row.dataset.g !== group) || !wanted.every((w) => words(row).includes(w));
      left += !row.hidden;
    }
    $("no-canaries").hidden = rows.children.length > 0;
    $("no-match").hidden = left > 0 || !rows.children.length;
    for (const tile of document.querySelectorAll(".tile")) {
      if ((tile.dataset.show || "") === group && group) tile.setAttribute("aria-current", "true");
      else tile.removeAttribute("aria-current");
    }
    return left;
  }
  function arrange() {
    const now = [...rows.children], sorted = [...now].sort(orders[order.value]);
    if (sorted.every((row, i) => row === now[i])) return;
    const held = document.activeElement;
    rows.append(...sorted);
    if (held && held !== document.activeElement && rows.contains(held)) held.focus({ preventScroll: true });
  }
  function remember() {
    const p = new URLSearchParams();
    if (query.value) p.set("q", query.value);
    if (shown.value) p.set("show", shown.value);
    if (order.value !== "urgency") p.set("sort", order.value);
    history.replaceState(null, "", base + "/" + (p.size ? "?" + p : ""));
  }
  if (rows) {
    let timer = 0;
    query.addEventListener("input", () => {
      const left = sift();
      remember();
      clearTimeout(timer);
      timer = setTimeout(() => announce(left === 1 ? "1 canary" : left + " canaries"), 600);
    });
    order.addEventListener("change", () => { arrange(); remember(); });
    $("filter").addEventListener("submit", (e) => { e.preventDefault(); sift(); remember(); });
    document.addEventListener("click", (e) => {
      const tile = e.target.closest("a[data-show]");
      if (!tile || e.ctrlKey || e.metaKey || e.shiftKey) return;
      e.preventDefault();
      if (!tile.closest(".tiles")) query.value = "";
      shown.value = tile.dataset.show === shown.value ? "" : tile.dataset.show;
      announce(sift() + " canaries");
      remember();
    });
    sift();
  }

  // ── keyboard ──────────────────────────────────────────────────────────────────────────────────────────────
  const help = $("help"), keysOn = $("keys-on");
  try { keysOn.checked = localStorage.getItem("canaryd-keys") !== "off"; } catch { /* storage is switched off */ }
  keysOn.addEventListener("change", () => { try { localStorage.setItem("canaryd-keys", keysOn.checked ? "on" : "off"); } catch { /* as above */ } });
  $("keys").hidden = false;
  $("keys").addEventListener("click", () => help.showModal());
  function go(step) {
    const links = [...rows.querySelectorAll("tr:not([hidden]) th a")];
    if (!links.length) return;
    const at = links.indexOf(document.activeElement);
    links[at < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + step, 0), links.length - 1)].focus();
  }
  document.addEventListener("keydown", (e) => {
    const typing = e.target.closest("input:not([type=checkbox]),select,textarea,[contenteditable]");
    if (e.key === "Escape" && e.target === query) { query.value = ""; sift(); remember(); query.blur(); return; }
    if (typing || e.ctrlKey || e.metaKey || e.altKey || help.open || !keysOn.checked) return;
    const act = { "/": () => query && query.focus(), j: () => rows && go(1), k: () => rows && go(-1), d: theme, "?": () => help.showModal(), h: () => { location.href = base + "/"; } }[e.key];
    if (act) { e.preventDefault(); act(); }
  });

  // ── live ──────────────────────────────────────────────────────────────────────────────────────────────────
  const live = $("live"), voice = $("say");
  const announce = (text) => { voice.textContent = ""; setTimeout(() => { voice.textContent = text; }, 50); };
  function state(word, lost) {
    live.hidden = false;
    live.classList.toggle("lost", lost);
    put(live.lastElementChild, word);
  }
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  function renew(row, name, html) { // one row of the table; what has the focus keeps it
    const box = document.createElement("template");
    box.innerHTML = html; // made and escaped by the daemon; the policy of the page lets no script of it run
    const fresh = box.content.firstElementChild;
    const held = row && row.contains(document.activeElement);
    if (row) row.replaceWith(fresh);
    else rows.append(fresh);
    if (held) fresh.querySelector("a").focus({ preventScroll: true });
    if (!calm.matches) fresh.classList.add("new");
    tell(fresh);
  }
  const stops = "a, summary, .log, .scroll, .plot";
  function part(name, html) {
    for (const place of document.querySelectorAll("[data-part]")) {
      if (place.dataset.part !== name) continue;
      const scrolled = place.querySelector(".log, .scroll"), top = scrolled ? scrolled.scrollTop : 0, left = scrolled ? scrolled.scrollLeft : 0;
      const held = place.contains(document.activeElement) ? [...place.querySelectorAll(stops)].indexOf(document.activeElement) : -1;
      const open = !!place.querySelector("details[open]");
      place.innerHTML = html; // as above
      const again = place.querySelector(".log, .scroll");
      if (again) { again.scrollTop = top; again.scrollLeft = left; }
      if (open && place.querySelector("details")) place.querySelector("details").open = true;
      reach(place);
      if (held >= 0) { const all = place.querySelectorAll(stops); if (all[held]) all[held].focus({ preventScroll: true }); }
      tell(place);
    }
    for (const place of document.querySelectorAll("[data-when]")) if (place.dataset.when === name) place.hidden = !html.trim();
  }
  function news(message) {
    const known = rows ? new Map([...rows.children].map((row) => [row.dataset.k, row])) : new Map();
    for (const [name, html] of Object.entries(message.parts)) {
      if (!name.startsWith("r:")) part(name, html);
      else if (rows) renew(known.get(name.slice(2)), name, html);
    }
    if (rows) {
      const gone = message.all ? [...known.keys()].filter((k) => !("r:" + k in message.parts)) : (message.gone || []).map((n) => n.slice(2));
      for (const key of gone) if (known.get(key)) known.get(key).remove();
      if (!rows.contains(document.activeElement)) arrange();
      sift();
    }
    if (message.says) announce(message.says.join(". "));
    phases();
  }
  let stream = null, pause = 1000, mark = body.dataset.since;
  function connect() {
    const url = body.dataset.events + (body.dataset.events.includes("?") ? "&" : "?") + "since=" + encodeURIComponent(mark);
    stream = new EventSource(url);
    stream.addEventListener("hello", (e) => {
      const hello = JSON.parse(e.data);
      for (const field of document.querySelectorAll("input[name=form]")) field.value = hello.form;
      pause = 1000;
      state("live", false);
    });
    stream.addEventListener("news", (e) => { mark = e.lastEventId || mark; news(JSON.parse(e.data)); });
    stream.addEventListener("over", () => { stream.close(); location.reload(); });
    stream.onerror = () => {
      state("reconnecting", true);
      if (stream.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      setTimeout(ask, pause * (0.75 + Math.random() / 2));
      pause = Math.min(pause * 2, 30000);
    };
  }
  async function ask() { // the stream was refused: is somebody still signed in?
    try {
      const answer = await fetch(base + "/session", { headers: { accept: "application/json" } });
      if (answer.status === 401 || answer.status === 403) return location.reload();
    } catch { /* nobody answers: try the stream again */ }
    connect();
  }
  if (body.dataset.events) {
    connect();
    addEventListener("pagehide", () => stream.close());
    addEventListener("pageshow", (e) => { if (e.persisted) connect(); });
  }

  // ── what people do ────────────────────────────────────────────────────────────────────────────────────────
  const acts = $("acts");
  function phases() { // which forms fit the phase; one that is open stays
    const top = document.querySelector("[data-phase]");
    if (!acts || !top) return;
    for (const act of acts.querySelectorAll(".act")) {
      const fits = act.dataset.phases.split(" ").includes(top.dataset.phase);
      act.hidden = !fits && !act.open;
    }
  }
  function answered(kind, sentence) {
    const place = $("answer");
    place.hidden = false;
    place.className = "answer " + kind;
    place.textContent = sentence;
  }
  const fresh = () => [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
  if (acts) {
    acts.addEventListener("toggle", (e) => {
      if (!e.target.open) return phases();
      for (const other of acts.querySelectorAll(".act[open]")) if (other !== e.target) other.open = false;
      e.target.querySelector("input[type=text]").focus();
    }, true);
    acts.addEventListener("keydown", (e) => {
      const act = e.target.closest(".act[open]");
      if (e.key === "Escape" && act) { act.open = false; act.querySelector("summary").focus(); }
    });
    acts.addEventListener("submit", async (e) => {
      e.preventDefault();
      const form = e.target, button = form.querySelector("button");
      button.disabled = true;
      answered("", "Waiting for the answer…");
      try {
        const answer = await fetch(form.getAttribute("action"), { method: "POST", headers: { accept: "application/json" }, body: new URLSearchParams(new FormData(form)) });
        const told = await answer.json();
        answered(told.answer || "refused", told.sentence || told.error || "It was not accepted.");
        if (told.answer) {
          form.closest(".act").open = false;
          form.reset();
          form.querySelector("input[name=id]").value = fresh();
        }
      } catch {
        answered("refused", "No answer: it is not known whether it arrived. “What people said” shows it if it did.");
      }
      button.disabled = false;
      phases();
    });
  }

  // ── signing in ────────────────────────────────────────────────────────────────────────────────────────────
  if ("login" in body.dataset && document.referrer && !document.querySelector("[role=alert]") && new URL(document.referrer).origin !== location.origin) {
    // A link from elsewhere came without the session, which is not sent along from other sites: look once more.
    fetch(base + "/session", { headers: { accept: "application/json" } }).then((a) => {
      if (a.ok) location.replace(location.href);
    }).catch(() => {});
  }
})();
