// The drawer: why a workspace shows what it shows. For each group its value, who said it and when, and what was rejected.

import { Component } from "/vendor/preact.js";
import { Age, keep, leave } from "/ages.js";
import { html, icon } from "/html.js";
import { WEB, agent, branchOf, count, plain, status, title, tone } from "/words.js";

const AGAIN_MS = 1000;
const GROUPS = { life: "Workspace", git: "Git", pr: "Pull request", ci: "Checks", ratchet: "Ratchet", terminal: "Terminal", run: "Run script" };
const ORDER = Object.keys(GROUPS);
const SOURCES = { catalog: "the catalog", git: "git", live: "a live report" };
const HEADS = new Set(["head"]);
const TIMES = new Set(["last_output"]);
const HEAD_DIGITS = 10;

export class Drawer extends Component {
  state = { told: null, problem: "", settled: false, of: "" };

  componentDidMount() {
    this.node.showModal();
    keep(this.node);
    this.ask();
  }

  componentDidUpdate(before) {
    const { project, id, entry } = this.props;
    if (before.project !== project || before.id !== id) {
      this.body.scrollTop = 0;
      this.ask();
    } else if (before.entry !== entry) this.later();
  }

  componentWillUnmount() {
    clearTimeout(this.timer);
    this.asking?.abort();
    leave(this.node);
  }

  /** Ask again soon: of many changes, once. */
  later() {
    this.timer ??= setTimeout(() => this.ask(), AGAIN_MS);
  }

  async ask() {
    clearTimeout(this.timer);
    this.timer = null;
    this.asking?.abort();
    const asking = (this.asking = new AbortController());
    const { project, id } = this.props;
    const of = project + "/" + id;
    const outcome = { told: null, problem: "", settled: true, of };
    try {
      const answer = await fetch(`/v1/projects/${encodeURIComponent(project)}/workspaces/${encodeURIComponent(id)}/explain`, { signal: asking.signal });
      const body = await answer.json();
      if (answer.ok) outcome.told = body;
      else outcome.problem = body.message;
    } catch {
      outcome.problem = "the gateway does not answer; try again";
    }
    if (asking.signal.aborted) return;
    if (outcome.told === null && this.state.of === of) outcome.told = this.state.told; // an older story is better than none
    this.setState(outcome);
  }

  close = () => this.node.close();

  render({ project, id, name: of, entry, known, stale, act }, { told, problem, settled, of: asked }) {
    const current = asked === project + "/" + id;
    const story = current ? told : null;
    const shown = entry ?? story?.state ?? {};
    const name = title(id, shown);
    const branch = branchOf(shown);
    const { label, icon: drawing } = status(shown.status?.code);
    return html`
      <dialog class="drawer ${stale ? "old" : ""}" aria-labelledby="story-title" ref=${(node) => { this.node = node; }}
        onClose=${act.close} onClick=${(event) => event.target === this.node && this.close()}>
        <div class="inside">
          <header>
            <div class="top">
              <h2 id="story-title" tabindex="-1" autofocus><bdi>${name}</bdi></h2>
              <button class="tool" id="close" aria-label="Close" title="Close (Esc)" onClick=${this.close}>${icon("close")}</button>
            </div>
            <p class="place"><span class="of"><bdi>${of}</bdi></span>${branch !== undefined && html`<span class="branch">${icon("branch")}<bdi>${branch}</bdi></span>`}</p>
            ${entry === null && known
              ? html`<p class="status" data-tone="calm">${icon("cross")}gone: archived or removed</p>`
              : shown.status && html`<p class="status" data-tone=${tone(shown.status)}>${drawing === "dot" ? html`<span class="dot"></span>` : icon(drawing)}${label}</p>`}
          </header>
          <div class="story" ref=${(node) => { this.body = node; }} tabindex="0" role="region" aria-label="Why it shows this">
            ${current && problem && html`<p class="problem" role="alert">${icon("alert")}<span>The story cannot be told now: ${problem}.</span> <button class="plain" onClick=${() => this.ask()}>Ask again</button></p>`}
            ${story ? html`<${Story} story=${story} />` : !(current && settled) && html`<div class="bones" aria-hidden="true">${[1, 2, 3].map((at) => html`<div class="chapter" key=${at}><span class="bone"></span><span class="bone long"></span></div>`)}</div>`}
          </div>
        </div>
      </dialog>`;
  }
}

function Story({ story }) {
  const { code, changed_at } = story.state.status ?? {};
  const { label, why, groups: from } = status(code);
  const decides = (group) => from.includes(group.startsWith("session:") ? "session" : group);
  const groups = Object.keys(story.groups).sort((a, b) => decides(b) - decides(a) || place(a) - place(b) || (a < b ? -1 : 1));
  return html`
    ${code !== undefined && html`
      <section class="chapter because" data-group="status">
        <h3>Why “${label}”</h3>
        <p>Because ${why}.</p>
        <p class="said">Derived from ${from.map((group) => (group === "session" ? "the agents" : (GROUPS[group] ?? group).toLowerCase())).join(" and ") || "what is below"}${changed_at !== undefined && html`, <${Age} at=${changed_at} /> ago`}.</p>
      </section>`}
    ${groups.map((group) => html`<${Chapter} key=${group} group=${group} value=${valueOf(story.state, group)} rulings=${story.groups[group]} />`)}
    ${groups.length === 0 && html`<p class="said">Nobody has reported anything yet.</p>`}
    <p class="said">Told at version ${story.version}.</p>`;
}

function place(group) {
  return group.startsWith("session:") ? 0.5 : (ORDER.indexOf(group) + ORDER.length + 1) % (ORDER.length + 1);
}

function valueOf(state, group) {
  return group.startsWith("session:") ? state.sessions?.[group.slice("session:".length)] : state[group];
}

function Chapter({ group, value, rulings }) {
  const newest = [...rulings].reverse();
  const winner = newest.find((one) => one.verdict === "applied");
  const confirmed = newest.find((one) => one.verdict === "confirmed");
  const refused = newest.filter((one) => one.verdict !== "applied" && one.verdict !== "confirmed");
  const before = newest.filter((one) => one.verdict === "applied" && one !== winner);
  return html`
    <section class="chapter" data-group=${group}>
      <h3><bdi>${heading(group, value)}</bdi></h3>
      <${Value} value=${value} />
      ${winner
        ? html`<p class="said"><b><bdi>${who(winner)}</bdi></b> said so <${Age} at=${winner.at_ms} /> ago: ${winner.cause}.${took(winner)}</p>`
        : value && html`<p class="said">Who said so is no longer remembered.</p>`}
      ${confirmed && html`<p class="said">${icon("check")}Confirmed${confirmed.times > 1 ? ` ${confirmed.times} times` : ""}, last by <bdi>${who(confirmed)}</bdi> <${Age} at=${confirmed.at_ms} /> ago: ${confirmed.cause}.</p>`}
      ${refused.length > 0 && html`<ul class="refused">${refused.map((one, at) => html`
        <li key=${at}><p><span class="verdict">${plain(one.verdict)}</span> <b><bdi>${who(one)}</bdi></b> was not believed${one.times > 1 ? ` ${one.times} times` : ""}, <${Age} at=${one.at_ms} /> ago: ${one.cause}.</p><${Said} one=${one} /></li>`)}</ul>`}
      ${before.length > 0 && html`<details><summary>${count(before.length, "earlier value")}</summary><ol>${before.map((one, at) => html`
        <li key=${at}><p><b><bdi>${who(one)}</bdi></b>, <${Age} at=${one.at_ms} /> ago: ${one.cause}.</p><${Said} one=${one} /></li>`)}</ol></details>`}
    </section>`;
}

function heading(group, value) {
  if (!group.startsWith("session:")) return GROUPS[group] ?? plain(group);
  return "Agent " + agent(value ?? { provider: group.slice("session:".length) });
}

function who({ producer, source }) {
  return producer ?? SOURCES[source] ?? plain(source);
}

function took({ interval }) {
  if (!interval) return "";
  const ms = interval.began_ms_ago - interval.ended_ms_ago;
  return ms > 0 ? ` The look took ${ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en")} ms.` : "";
}

function fieldsOf(value) {
  return Object.entries(value ?? {}).filter(([name, one]) => name !== "changed_at" && name !== "kind" && one !== null);
}

function Value({ value }) {
  const fields = fieldsOf(value);
  if (fields.length === 0) return html`<p class="nothing">Nothing is known.</p>`;
  return html`<dl>${fields.map(([name, one]) => html`<div key=${name}><dt>${plain(name)}</dt><dd><${Field} name=${name} value=${one} /></dd></div>`)}</dl>`;
}

function Field({ name, value }) {
  if (value === true) return "yes";
  if (value === false) return "no";
  if (TIMES.has(name)) return html`<span><${Age} at=${value} /> ago</span>`;
  if (typeof value === "number") return name === "number" || name === "port" ? String(value) : value.toLocaleString("en");
  if (HEADS.has(name)) return html`<code title=${value}>${String(value).slice(0, HEAD_DIGITS)}</code>`;
  if (name === "url" && WEB.test(value)) return html`<a href=${value} target="_blank" rel="noopener noreferrer"><bdi>${value}</bdi></a>`;
  return html`<bdi>${String(value)}</bdi>`;
}

function Said({ one }) {
  if (one.value === null) return html`<p class="what">It said: gone.</p>`;
  const fields = fieldsOf(one.value);
  if (fields.length === 0) return null;
  return html`<p class="what">It said: ${fields.map(([name, value], at) => html`${at > 0 && ", "}${plain(name)} <b><${Field} name=${name} value=${value} /></b>`)}.</p>`;
}
