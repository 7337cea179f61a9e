// The board's beginning: it follows what is live, keeps what the user chose, and renders both, seldom enough.

import { render as paint } from "/vendor/preact.js";
import { arrange } from "/arrange.js";
import { Board } from "/board.js";
import { html } from "/html.js";
import { follow } from "/live.js";
import { COLUMNS, status, title } from "/words.js";

const RENDER_MS = 200;
const BATCH = 60; // cards of a column at first, and again each time its end comes into view
const THEMES = ["", "light", "dark"];
const root = document.getElementById("root");
const icon = document.querySelector("link[rel=icon]");

const ui = {
  project: "", search: "", open: null, help: false, column: "waiting", allNeeds: false, most: fewest(),
  theme: document.documentElement.dataset.theme ?? "",
  canNotify: "Notification" in globalThis && Notification.permission !== "denied",
  notify: "Notification" in globalThis && Notification.permission === "granted" && kept("notify") === "on",
};

function fewest() {
  return Object.fromEntries(COLUMNS.map((column) => [column, BATCH]));
}

function kept(name) {
  try {
    return localStorage.getItem("treewire." + name);
  } catch {
    return null;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem("treewire." + name, value);
  } catch { /* then it holds for this page only */ }
}

// ── the address: what one would want to send to somebody ─────────────────────────────────────────

function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (asked.has("token")) return; // signed in already: it shall not stay in view
  ui.project = asked.get("project") ?? "";
  ui.search = asked.get("search") ?? "";
  const [project, id] = [asked.get("of") ?? ui.project, asked.get("workspace")];
  ui.open = id && project ? { project, id } : null;
}

function writeAddress() {
  const told = new URLSearchParams();
  if (ui.project) told.set("project", ui.project);
  if (ui.search.trim()) told.set("search", ui.search.trim());
  if (ui.open) {
    if (ui.open.project !== ui.project) told.set("of", ui.open.project);
    told.set("workspace", ui.open.id);
  }
  const wanted = told.size ? "#" + told : "";
  if (wanted !== location.hash) history.replaceState(null, "", location.pathname + wanted);
}

// ── rendering: at once for who needs the user, otherwise once per burst ──────────────────────────

let arranged;
let timer = 0;
let due = Infinity;
let last = -Infinity;

function changed(urgent) {
  const now = performance.now();
  const at = urgent ? now : Math.max(now, last + RENDER_MS);
  if (at >= due) return;
  clearTimeout(timer);
  due = at;
  timer = setTimeout(render, at - now);
}

function render() {
  clearTimeout(timer);
  due = Infinity;
  arranged = arrange(live, ui);
  signal(arranged.needed);
  if (document.hidden) return; // nobody sees it; it is made good when somebody does
  last = performance.now();
  const held = document.activeElement?.dataset.open;
  paint(html`<${Board} live=${live} ui=${ui} arranged=${arranged} act=${act} />`, root);
  if (held !== undefined && document.activeElement === document.body) cardOf(held)?.focus({ preventScroll: true }); // it moved
}

function redraw() {
  writeAddress();
  render();
}

let signalled = null;

/** How many need the user, where one looks while looking at something else: the tab's title and icon. */
function signal(needed) {
  if (needed === signalled) return;
  signalled = needed;
  document.title = needed ? `(${needed}) treewire` : "treewire";
  icon.href = needed ? badge(needed) : "/icon.svg";
}

function badge(needed) {
  const text = needed > 99 ? "99" : String(needed);
  const size = text.length > 1 ? 17 : 20;
  return "data:image/svg+xml," + encodeURIComponent(
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#c2410c"/>` +
    `<text x="16" y="23" text-anchor="middle" font-family="sans-serif" font-weight="700" font-size="${size}" fill="#fff">${text}</text></svg>`);
}

/** To whom asked for it and looks elsewhere: a name, and what kind of need. */
function rose(project, id, entry) {
  if (!ui.notify || document.hasFocus()) return;
  const told = new Notification(title(id, entry), { body: status(entry.status?.code).label, tag: project + "/" + id, icon: "/icon.svg" });
  told.onclick = () => {
    window.focus();
    act.open({ project, id });
    told.close();
  };
}

// ── what the user does ───────────────────────────────────────────────────────────────────────────

const act = {
  choose(event) {
    ui.project = event.target.value;
    ui.most = fewest();
    live.prefer(ui.project);
    redraw();
  },
  search(event) {
    ui.search = event.target.value;
    ui.most = fewest();
    redraw();
  },
  clear() {
    ui.search = "";
    redraw();
    document.getElementById("search").focus();
  },
  column(event) {
    ui.column = event.currentTarget.dataset.column;
    redraw();
    scrollTo(0, 0);
  },
  more(column) {
    ui.most = { ...ui.most, [column]: ui.most[column] + BATCH };
    redraw();
  },
  allNeeds() {
    ui.allNeeds = !ui.allNeeds;
    redraw();
  },
  open(which) {
    ui.open = which;
    ui.help = false;
    redraw();
  },
  close() {
    const key = ui.open && ui.open.project + "/" + ui.open.id;
    ui.open = null;
    redraw();
    cardOf(key)?.focus({ preventScroll: true });
  },
  help() {
    ui.help = true;
    redraw();
  },
  unhelp() {
    ui.help = false;
    redraw();
  },
  async signOut(event) {
    const button = event.currentTarget;
    try {
      const answer = await fetch("/v1/logout", { method: "POST" });
      if (!answer.ok && answer.status !== 401) throw new Error(answer.statusText);
      location.replace("/");
    } catch {
      button.textContent = "Not signed out: treewire does not answer. Try again";
    }
  },
  theme() {
    ui.theme = THEMES[(THEMES.indexOf(ui.theme) + 1) % THEMES.length];
    if (ui.theme) document.documentElement.dataset.theme = ui.theme;
    else delete document.documentElement.dataset.theme;
    keep("theme", ui.theme);
    redraw();
  },
  async notify() {
    if (ui.notify) ui.notify = false;
    else ui.notify = (await Notification.requestPermission()) === "granted";
    ui.canNotify = Notification.permission !== "denied";
    keep("notify", ui.notify ? "on" : "off");
    redraw();
  },
  async copy(event) {
    const button = event.currentTarget;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling); // then by hand
    }
  },
  skip(event) {
    event.preventDefault(); // the fragment is ours
    cards()[0]?.focus();
  },
};

root.addEventListener("click", (event) => {
  const key = event.target.closest("[data-open]")?.dataset.open;
  if (key !== undefined) act.open(placeOf(key));
});

function placeOf(key) {
  const at = key.indexOf("/"); // an id holds none
  return { project: key.slice(0, at), id: key.slice(at + 1) };
}

function cards() {
  return [...root.querySelectorAll(".card .open")].filter((card) => card.checkVisibility());
}

function cardOf(key) {
  return cards().find((card) => card.dataset.open === key);
}

/** Go to a card: with the drawer open, in the drawer. */
function go(key) {
  if (key === undefined) return;
  if (ui.open) act.open(placeOf(key));
  else cardOf(key)?.focus();
}

function here() {
  return ui.open ? ui.open.project + "/" + ui.open.id : document.activeElement?.dataset.open;
}

function step(by) {
  const keys = cards().map((card) => card.dataset.open);
  const at = keys.indexOf(here());
  go(at === -1 ? keys[0] : keys[at + by]);
}

function nextNeed() {
  const keys = arranged.needs.map((row) => row.key);
  const key = keys[(keys.indexOf(here()) + 1) % keys.length];
  if (key !== undefined && !ui.open && ui.column !== "waiting") {
    ui.column = "waiting"; // on a narrow screen one column is shown at a time
    redraw();
  }
  go(key);
}

function sideways(by) {
  const lists = COLUMNS.map((column) => arranged.columns[column].map((row) => row.key));
  const from = lists.findIndex((keys) => keys.includes(here()));
  for (let at = from + by; at >= 0 && at < lists.length; at += by) {
    if (lists[at].length) return go(lists[at][Math.min(Math.max(0, lists[from]?.indexOf(here()) ?? 0), lists[at].length - 1)]);
  }
}

const KEYS = {
  n: nextNeed,
  j: () => step(1),
  k: () => step(-1),
  h: () => sideways(-1),
  l: () => sideways(1),
  "/": () => document.getElementById("search").select(),
  "?": () => act.help(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const field = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && field?.id === "search") {
    if (ui.search) act.clear();
    else field.blur();
    event.preventDefault();
  }
  if (event.key === "Enter" && field?.id === "search") cards()[0]?.focus();
  if (field || !Object.hasOwn(KEYS, event.key)) return;
  if (ui.help || (ui.open && "/?hl".includes(event.key))) return;
  event.preventDefault();
  KEYS[event.key]();
});

document.addEventListener("visibilitychange", () => changed(true));
addEventListener("hashchange", () => {
  readAddress();
  redraw();
});

readAddress();
const live = follow(changed, rose);
if (ui.project) live.prefer(ui.project);
redraw();
