// The whole screen as a function of what is known and what the user chose. Nothing is shown before it is confirmed.

import { Component } from "/vendor/preact.js";
import { Age, Aged } from "/ages.js";
import { Card, Need } from "/card.js";
import { html, icon } from "/html.js";
import { isStale } from "/live.js";
import { Drawer } from "/story.js";
import { COLUMNS, ailing, count } from "/words.js";

const BONES = { working: 3, waiting: 2, done: 1 };
const NEEDS = 8;
const NEEDS_NARROW = 3; // as many as the style sheet leaves on a narrow screen
const CONNECTIONS = { connecting: "connecting", open: "live", waiting: "reconnecting", refused: "refused" };
const PRESSING = new Set(["gateway", "aggregator"]); // without these nothing shown is fresh
const EMPTY = { working: "Nobody works.", waiting: "Nothing waits.", done: "Nothing is done yet." };
const COLOURS = { "": "as the system", light: "light", dark: "dark" };
export const KEYS = [
  ["n", "next that needs you"],
  ["j k", "next and previous card"],
  ["h l", "column to the left and right"],
  ["Enter", "open the card"],
  ["Esc", "close, or clear the search"],
  ["/", "search"],
  ["?", "these keys"],
];

export function Board({ live, ui, arranged, act }) {
  const known = live.projects.length > 0 || live.settled;
  const waits = !known || (arranged.loading > 0 && arranged.total === 0);
  const stale = isStale(live) && !waits;
  const ungone = live.projects.some((project) => project.id === ui.project) ? ui.project : "";
  return html`
    <a class="skip" href="#columns" onClick=${act.skip}>Skip to the workspaces</a>
    <${Bar} live=${live} ui=${ui} arranged=${arranged} act=${act} project=${ungone} stale=${stale} />
    <p class="unseen" role="status" aria-live="polite">${waits ? "" : called(arranged.needed)}</p>
    <main class=${stale ? "old" : ""} aria-busy=${String(waits)} aria-label="Workspaces">
      <${Notices} live=${live} arranged=${arranged} stale=${stale} known=${known} />
      ${waits ? html`<${Skeleton} />` : html`<${Content} live=${live} ui=${ui} arranged=${arranged} act=${act} />`}
    </main>
    ${ui.open && html`<${Drawer} ...${held(live, ui.open)} stale=${stale} act=${act} />`}
    ${ui.help && html`<${Help} act=${act} />`}`;
}

function called(needed) {
  return needed === 0 ? "Nobody needs you." : count(needed, "workspace needs you", "workspaces need you") + ".";
}

/** What is known of the workspace in the drawer: its entry is `null` once it left. */
function held(live, { project, id }) {
  const found = live.projects.find((one) => one.id === project);
  const of = live.followed.get(project);
  return { project, id, name: found?.name ?? project, entry: of?.workspaces?.[id] ?? null, known: of?.workspaces != null };
}

// ── the bar ──────────────────────────────────────────────────────────────────────────────────────

function Bar({ live, ui, act, project, stale, arranged }) {
  const known = live.projects.length > 0;
  return html`
    <header class="bar">
      <h1>${icon("mark")}<span>treewire</span></h1>
      ${known && html`<label class="picker"><span class="unseen">Project</span>
        <select id="project" value=${project} onChange=${act.choose}>
          <option value="">All projects</option>
          ${live.projects.map(({ id, name }) => html`<option key=${id} value=${id}>${name}${size(live.followed.get(id))}</option>`)}
        </select></label>`}
      <search class="search">
        ${icon("search")}
        <input id="search" type="search" placeholder="Search" aria-label="Search workspaces" autocomplete="off" spellcheck=${false} value=${ui.search} onInput=${act.search} />
        <kbd aria-hidden="true">/</kbd>
      </search>
      <${Connection} live=${live} project=${project} stale=${stale} needed=${arranged.needed} />
      <div class="tools">
        ${ui.canNotify && html`<button class="tool" id="notify" aria-pressed=${String(ui.notify)} onClick=${act.notify}
          title=${ui.notify ? "Notifications are on" : "Notify me when a workspace needs me"} aria-label="Notify me when a workspace needs me">${icon("bell")}</button>`}
        <button class="tool" id="theme" onClick=${act.theme} title=${"Colours: " + COLOURS[ui.theme]} aria-label=${"Colours: " + COLOURS[ui.theme]}>${icon("theme")}</button>
        <button class="tool" id="help" onClick=${act.help} title="Keys and signing out (?)" aria-label="Keys and signing out" aria-haspopup="dialog">${icon("help")}</button>
      </div>
    </header>`;
}

function size(one) {
  return one?.workspaces ? " (" + Object.keys(one.workspaces).length.toLocaleString("en") + ")" : "";
}

/** Whether one hears of changes, and the version at which the hash of what is shown was found equal to the server's. */
class Connection extends Aged {
  render({ live, project, stale }) {
    const shown = [...live.followed].filter(([id, one]) => (project === "" || id === project) && one.workspaces !== null).map(([, one]) => one);
    const only = shown.length === 1 ? shown[0] : null;
    const verified = shown.length > 0 && shown.every((one) => one.verified !== null);
    const at = verified ? Math.min(...shown.map((one) => one.verifiedAt)) : null;
    const version = only && (only.verified ?? only.version);
    const word = stale && live.connection === "open" ? "stale" : CONNECTIONS[live.connection] ?? live.connection;
    const state = word === "stale" ? "stale" : live.connection;
    const versions = shown.length ? "; now at version " + shown.map((one) => one.version).join(", ") : "";
    return html`
      <p class="connection" data-state=${state} ref=${this.ref}>
        <span class="dot"></span><span id="connection" data-state=${live.connection} role="status">${word}${live.connection === "refused" && live.detail ? ": " + live.detail : ""}</span>
        ${stale
          ? html`<span class="asof"> · as of <${Age} at=${live.freshAt} /> ago</span>`
          : live.connection === "open" && html`
            ${shown.length > 0 && html`<span class="version"> · ${only ? "v" + version : count(shown.length, "project")}</span>`}
            ${verified && html`<span class="verified" title=${"The hash of what you see equals the server's" + versions}> <span aria-hidden="true">✓</span><span class="unseen">verified</span> <${Age} at=${at} /> ago</span>`}`}
      </p>`;
  }
}

// ── what is not well ─────────────────────────────────────────────────────────────────────────────

class Notices extends Aged {
  render({ live, arranged, stale, known }) {
    const told = [];
    if (live.connection !== "open" && known) {
      const lost = live.connection === "refused"
        ? "The gateway refused the connection" + (live.detail ? ": " + live.detail : "") + ". Load the page again."
        : "The gateway does not answer. What you see is the last that was known; trying again.";
      told.push({ part: "gateway", state: live.connection === "refused" ? "refused" : "away", means: lost });
    }
    if (live.connection === "open") told.push(...ailing(live.health));
    for (const { id, name } of live.projects) {
      const one = live.followed.get(id);
      if (!one) told.push({ part: name, state: "not shown", means: "There are more projects than one board can follow: choose it above to see it." });
      else if (one.state === "refused" && live.connection === "open") told.push({ part: name, state: "refused", means: "It is not shown: " + one.problem + "." });
      else if (!one.complete) told.push({ part: name, state: "incomplete", means: "Not every workspace fits into the store." });
      else if (one.state === "degraded") told.push({ part: name, state: "degraded", means: "Its state had to be fetched again and again." });
    }
    const urgent = told.filter(({ part }) => PRESSING.has(part));
    const rest = told.filter(({ part }) => !PRESSING.has(part));
    const line = ({ part, state, means }) => html`
      <li key=${part + state} data-part=${part} data-state=${state}>${icon("alert")}<span><b><bdi>${part}</bdi> ${state}</b> ${means}${
        stale && PRESSING.has(part) && live.freshAt !== null && html` <span class="asof">As of <${Age} at=${live.freshAt} /> ago.</span>`}</span></li>`;
    return html`<div id="health" role="status" ref=${this.ref}>
      ${urgent.length > 0 && html`<ul class="notices pressing">${urgent.map(line)}</ul>`}
      ${rest.length === 1 && html`<ul class="notices">${rest.map(line)}</ul>`}
      ${rest.length > 1 && html`<details class="notices"><summary>${icon("alert")}<span>${rest.map(({ part, state }, at) => html`${at > 0 && " · "}<b><bdi>${part}</bdi> ${state}</b>`)}</span></summary><ul>${rest.map(line)}</ul></details>`}
      ${arranged.loading > 0 && arranged.total > 0 && html`<p class="loading">Loading ${count(arranged.loading, "more project")}</p>`}
    </div>`;
  }
}

// ── the columns ──────────────────────────────────────────────────────────────────────────────────

function Content({ live, ui, arranged, act }) {
  if (live.projects.length === 0) {
    return html`<${Empty} drawing="folder" what="No repository is followed yet." hint="Follow one, with all of its worktrees:" command="treewire project add PATH" act=${act} />`;
  }
  if (arranged.total === 0) {
    return html`<${Empty} drawing="branch" what="No worktrees yet." hint="Make one in the repository; it appears here by itself:" command="git worktree add ../my-task -b my-task" act=${act} />`;
  }
  if (arranged.shown === 0) {
    return html`<${Empty} drawing="search" what=${html`Nothing matches “<bdi>${ui.search.trim()}</bdi>”.`} hint=${`None of ${count(arranged.total, "workspace")} has it in a name, branch, agent, state or project.`} act=${act} clear />`;
  }
  const name = ui.project === "" && live.projects.length > 1 ? new Map(live.projects.map((one) => [one.id, one.name])) : null;
  return html`
    <${Needs} rows=${arranged.needs} name=${name} all=${ui.allNeeds} act=${act} />
    <div class="tabs" role="group" aria-label="Column">
      ${COLUMNS.map((column) => html`<button key=${column} data-column=${column} aria-pressed=${String(ui.column === column)} onClick=${act.column}>${column} <span>${arranged.columns[column].length.toLocaleString("en")}</span></button>`)}
    </div>
    <div class="columns" id="columns" data-column=${ui.column}>
      ${COLUMNS.map((column) => html`<${Column} key=${column} column=${column} rows=${arranged.columns[column]} most=${ui.most[column]} name=${name} act=${act} />`)}
    </div>`;
}

function Needs({ rows, name, all, act }) {
  if (rows.length === 0) return null;
  const shown = all ? rows : rows.slice(0, NEEDS);
  return html`
    <section class="strip ${all ? "all" : ""}" aria-labelledby="needs">
      <div class="head">
        <h2 id="needs">Needs you <span class="count">${rows.length}</span></h2>
        ${rows.length > NEEDS_NARROW && html`<button class="more ${rows.length > NEEDS ? "" : "narrow"}" aria-expanded=${String(all)} onClick=${act.allNeeds}>${all ? "Show fewer" : "Show all"}</button>`}
      </div>
      <ul>${shown.map((row) => html`<${Need} key=${row.key} row=${row} project=${name?.get(row.project) ?? ""} />`)}</ul>
    </section>`;
}

function Column({ column, rows, most, name, act }) {
  const shown = rows.slice(0, most);
  return html`
    <section class="column" data-column=${column} aria-labelledby=${"column-" + column}>
      <h2 id=${"column-" + column}>${column} <span class="count">${rows.length.toLocaleString("en")}</span></h2>
      ${rows.length === 0
        ? html`<p class="nothing">${EMPTY[column]}</p>`
        : html`<ul class="cards">${shown.map((row) => html`<${Card} key=${row.key} row=${row} project=${name?.get(row.project) ?? ""} />`)}</ul>`}
      ${rows.length > most && html`<${More} column=${column} left=${rows.length - most} act=${act} />`}
    </section>`;
}

/** The end of what is rendered so far: when it comes into view, there is more. */
class More extends Component {
  node = null;

  componentDidMount() {
    this.watcher = new IntersectionObserver((changes) => {
      if (changes.some((one) => one.isIntersecting)) this.props.act.more(this.props.column);
    }, { rootMargin: "600px" });
    this.watcher.observe(this.node);
  }

  componentDidUpdate() {
    this.watcher.unobserve(this.node); // still in view after one more batch: it has to be told again
    this.watcher.observe(this.node);
  }

  componentWillUnmount() {
    this.watcher.disconnect();
  }

  render({ column, left, act }) {
    return html`<button class="more" ref=${(node) => { this.node = node; }} onClick=${() => act.more(column)}>${count(left, "more workspace")}</button>`;
  }
}

function Empty({ drawing, what, hint, command, act, clear }) {
  return html`
    <section class="empty" aria-label="Nothing to show">
      <span class="disc">${icon(drawing)}</span>
      <h2>${what}</h2>
      <p>${hint}</p>
      ${command && html`<p class="command"><code>${command}</code><button data-copy=${command} onClick=${act.copy}>Copy</button></p>`}
      ${clear && html`<button class="plain" id="clear" onClick=${act.clear}>Clear the search</button>`}
    </section>`;
}

export function Skeleton() {
  return html`
    <div class="columns bones" aria-hidden="true">
      ${COLUMNS.map((column) => html`
        <section class="column" key=${column}>
          <p class="bone-head"><span class="bone"></span></p>
          ${Array.from({ length: BONES[column] }, (_, at) => html`<div class="card" key=${at}><span class="bone wide"></span><span class="bone"></span><span class="bone long"></span></div>`)}
        </section>`)}
    </div>
    <p class="unseen">Loading the workspaces.</p>`;
}

class Help extends Component {
  componentDidMount() {
    this.node.showModal();
  }

  render({ act }) {
    return html`
      <dialog class="help" aria-labelledby="help-title" ref=${(node) => { this.node = node; }} onClose=${act.unhelp} onClick=${(event) => event.target === this.node && this.node.close()}>
        <div class="inside">
          <header><h2 id="help-title">Keys</h2><button class="tool" aria-label="Close" onClick=${() => this.node.close()}>${icon("close")}</button></header>
          <dl>${KEYS.map(([keys, what]) => html`<div key=${keys}><dt>${keys.split(" ").map((key) => html`<kbd>${key}</kbd> `)}</dt><dd>${what}</dd></div>`)}</dl>
          <p class="leave"><button class="plain" id="sign-out" onClick=${act.signOut}>Sign out</button></p>
        </div>
      </dialog>`;
  }
}
