// The plain board: every project's workspaces, live. All text is set as text: names and branches come from anywhere.

import { Treewire } from "/client.js";

const RENDER_MS = 200;
const PROJECTS_MS = 5000;
const FIRST_PROJECT_MS = 1000;
const AGE_MS = 10_000;

const CONNECTION = { connecting: "connecting", open: "live", waiting: "connection lost, trying again", refused: "refused" };
const WORDS = {
  checking_pr: "checking PR", waiting_for_ci: "waiting for CI", ci_failed: "CI failed", fixing_ci_failures: "fixing CI failures",
  pr_closed: "PR closed", no_session_started: "no session yet",
};
if (location.hash.startsWith("#token=")) history.replaceState(null, "", "/"); // signed in already: do not keep it in view

const board = document.getElementById("board");
const connection = document.getElementById("connection");
const health = document.getElementById("health");
const views = new Map(); // project → what is subscribed, its view, its section
let projects = []; // as the server listed them
let settled = false; // whether there are no others
let stale = false;

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function words(code) {
  return WORDS[code] ?? String(code ?? "unknown").replaceAll("_", " ");
}

function doing({ state, waiting_for, crashed }) {
  if (crashed) return "crashed";
  return words(state) + (waiting_for === undefined ? "" : " for " + words(waiting_for));
}

function age(then) {
  const seconds = Math.max(0, (Date.now() - then) / 1000);
  if (seconds < 60) return Math.floor(seconds) + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 86_400) return Math.floor(seconds / 3600) + " h";
  return Math.floor(seconds / 86_400) + " d";
}

// ── rendering, at most every so often ────────────────────────────────────────────────────────────

let pending = 0;
let last = -RENDER_MS;

function changed() {
  if (pending) return;
  pending = setTimeout(() => {
    pending = 0;
    last = performance.now();
    render();
  }, Math.max(0, last + RENDER_MS - performance.now()));
}

function render() {
  if (projects.length === 0 && !settled) return; // the skeleton stays
  board.setAttribute("aria-busy", String([...views.values()].some((one) => one.view?.workspaces == null)));
  if (projects.length === 0) {
    board.replaceChildren(empty("No repository is followed yet.", "Add one in a terminal: ", "treewire project add PATH"));
    return;
  }
  const sections = projects.filter(({ id }) => views.has(id)).map((project) => section(project, views.get(project.id)));
  for (const [at, node] of sections.entries()) {
    if (board.children[at] !== node) board.insertBefore(node, board.children[at] ?? null);
  }
  while (board.children.length > sections.length) board.lastChild.remove();
}

function empty(what, hint, command) {
  const next = make("p", "", hint, make("code", "", command));
  return make("div", "empty", make("p", "", what), next);
}

function section(project, one) {
  const view = one.view;
  one.node ??= make("section", "project");
  one.node.classList.toggle("old", stale || connection.dataset.state !== "open");
  const workspaces = view?.workspaces ?? null;
  const heading = make("h2", "", make("span", "", project.name));
  if (workspaces === null) {
    one.node.replaceChildren(heading, ...[1, 2, 3].map(() => make("div", "bone row")));
    heading.append(make("small", "", "loading"));
    return one.node;
  }
  const rows = Object.entries(workspaces).sort(byNeed);
  heading.append(make("small", "", rows.length === 1 ? "1 workspace" : rows.length + " workspaces"), make("small", "", "version " + view.version));
  if (view.verified === view.version) {
    const mark = make("small", "verified", "✓ verified");
    mark.title = "The hash of what you see equals the server's.";
    heading.append(mark);
  }
  if (!view.complete) heading.append(make("small", "note", "incomplete: not every workspace fits"));
  if (view.state === "degraded") heading.append(make("small", "note", "degraded: the state had to be fetched again and again"));
  if (rows.length === 0) {
    one.node.replaceChildren(heading, empty("No worktrees yet. New ones appear here by themselves.", "Make one: ", "git worktree add ../my-task -b my-task"));
    return one.node;
  }
  const head = make("tr", "", ...["Workspace", "Status", "Changes", "Files", "Ahead / behind", "Sessions"].map((name, at) => {
    const cell = make("th", at >= 2 && at <= 4 ? "number" : "", name);
    cell.scope = "col";
    return cell;
  }));
  one.node.replaceChildren(heading, make("table", "", make("thead", "", head), make("tbody", "", ...rows.map(row))));
  return one.node;
}

function byNeed([a, left], [b, right]) {
  const need = Number(right.status?.needs_user ?? false) - Number(left.status?.needs_user ?? false);
  const columns = ["waiting", "working", "done"];
  const rank = (entry) => (columns.indexOf(entry.status?.column) + 4) % 4;
  return need || rank(left) - rank(right) || String(left.life?.name ?? a).localeCompare(String(right.life?.name ?? b));
}

function row([id, entry]) {
  const { life = {}, git = {}, status = {}, sessions = {} } = entry;
  const branch = git.branch ?? life.branch;
  const title = make("td", "title", make("span", "name", life.name ?? id));
  if (branch !== undefined && branch !== life.name) title.append(" ", make("span", "branch", branch));
  const state = make("td", "status", words(status.code));
  if (status.column) state.dataset.column = status.column;
  const changes = make("td", "number changes");
  if (git.insertions !== undefined || git.deletions !== undefined) {
    changes.append(make("span", "plus", "+" + (git.insertions ?? 0)), make("span", "minus", "−" + (git.deletions ?? 0)));
  }
  const distance = make("td", "number distance");
  if (git.ahead !== undefined || git.behind !== undefined) distance.append("↑" + (git.ahead ?? 0) + " ↓" + (git.behind ?? 0));
  const agents = make("td", "sessions");
  for (const session of Object.values(sessions)) {
    const one = make("span", "", (session.provider ?? session.name ?? "agent") + " " + doing(session) + " ");
    if (session.changed_at !== undefined) {
      const time = make("time", "", age(session.changed_at));
      time.dataset.at = session.changed_at;
      one.append(time);
    }
    agents.append(one);
  }
  const files = make("td", "number files", git.files === undefined ? "" : String(git.files));
  const line = make("tr", status.needs_user ? "needs" : "", title, state, changes, files, distance, agents);
  line.dataset.workspace = id;
  return line;
}

function told(state, detail) {
  connection.dataset.state = state;
  connection.textContent = CONNECTION[state] + (detail && state !== "open" ? ": " + detail : "");
  changed();
}

// ── what is followed ─────────────────────────────────────────────────────────────────────────────

const client = new Treewire((location.protocol === "https:" ? "wss://" : "ws://") + location.host + "/v1/stream", {
  change(project, view) {
    const one = views.get(project);
    if (!one) return;
    one.view = view;
    if (view.state === "gone") {
      views.delete(project);
      list();
    }
    changed();
  },
  connection: told,
  health(parts) {
    stale = parts.aggregator === "stale";
    const bad = Object.entries(parts).filter(([, state]) => state !== "ok").map(([part, state]) => part + " " + words(state));
    health.textContent = bad.join(", ");
    changed();
  },
});

async function list() {
  let answer;
  try {
    answer = await fetch("/v1/projects");
  } catch {
    return; // the connection's state says so already
  }
  if (answer.status === 401) location.replace("/");
  if (!answer.ok) return;
  const body = await answer.json();
  projects = body.projects;
  settled = body.settled;
  const known = new Set(projects.map((project) => project.id));
  for (const project of projects) {
    if (!views.has(project.id)) {
      const one = { view: null, node: null, end: null };
      views.set(project.id, one);
      one.end = client.subscribe(project.id);
    }
  }
  for (const [id, one] of views) {
    if (!known.has(id)) {
      one.end();
      views.delete(id);
    }
  }
  changed();
}

history.replaceState(null, "", "/");
(async function relist() {
  if (document.visibilityState === "visible") await list();
  setTimeout(relist, projects.length ? PROJECTS_MS : FIRST_PROJECT_MS);
})();
setInterval(() => {
  for (const time of board.querySelectorAll("time")) time.textContent = age(Number(time.dataset.at));
}, AGE_MS);
