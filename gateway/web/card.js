// One workspace on the board: a card, and its line in the strip of those that need the user.

import { Aged, Age } from "/ages.js";
import { html, icon } from "/html.js";
import { WEB, agent, branchOf, count, doing, plain, sessionsOf, status, title, tone } from "/words.js";

const AGENTS = 3;
const FRESH_MS = 2000;

/** Rendered again only when its row is another one, which is when its entry is. */
export class Card extends Aged {
  shouldComponentUpdate({ row, project }) {
    return row !== this.props.row || project !== this.props.project;
  }

  render({ row, project }) {
    const { entry, key, id, at } = row;
    const { code } = entry.status ?? {};
    const { label, icon: drawing, why } = status(code);
    const name = title(id, entry);
    const fresh = at !== null && Date.now() - at < FRESH_MS;
    return html`
      <li class="card ${row.needs ? "needs" : ""} ${fresh ? "fresh" : ""}" data-tone=${tone(entry.status)} data-workspace=${id} ref=${this.ref}>
        <div class="top">
          <h3><button class="open" data-open=${key} aria-haspopup="dialog" title=${name}><bdi>${name}</bdi></button></h3>
          <span class="age"><${Age} at=${at} /></span>
        </div>
        <${Branch} entry=${entry} name=${name} />
        <div class="so">
          <p class="status" title=${why}>${drawing === "dot" ? html`<span class="dot"></span>` : icon(drawing)}${label}</p>
          ${project && html`<span class="of" title=${"project " + project}><bdi>${project}</bdi></span>`}
        </div>
        <${Agents} entry=${entry} />
        <${Numbers} git=${entry.git ?? {}} />
        <${Chips} entry=${entry} />
      </li>`;
  }
}

/** One that needs the user: what for, and for how long already. */
export class Need extends Aged {
  shouldComponentUpdate({ row, project }) {
    return row !== this.props.row || project !== this.props.project;
  }

  render({ row, project }) {
    const { label, icon: drawing } = status(row.entry.status?.code);
    const name = title(row.id, row.entry);
    return html`
      <li ref=${this.ref}>
        <button class="need" data-open=${row.key} data-tone=${tone(row.entry.status)} aria-haspopup="dialog">
          <span class="disc">${icon(drawing === "dot" ? "bell" : drawing)}</span>
          <span class="who"><bdi title=${name}>${name}</bdi></span>
          <span class="kind"><span>${label}</span>${project && html`<span class="of"><bdi>${project}</bdi></span>`}</span>
          <span class="age"><${Age} at=${row.at} /></span>
        </button>
      </li>`;
  }
}

function Branch({ entry, name }) {
  const branch = branchOf(entry);
  if (branch === undefined || branch === name) return null;
  return html`<p class="branch" title=${branch}>${icon("branch")}<bdi>${branch}</bdi></p>`;
}

function Agents({ entry }) {
  const sessions = sessionsOf(entry);
  if (sessions.length === 0) return null;
  const more = sessions.length - AGENTS;
  return html`<ul class="agents">
    ${sessions.slice(0, AGENTS).map(([id, session]) => {
      const [what, colour] = doing(session);
      return html`<li key=${id} data-tone=${colour}>
        <span class="who"><b><bdi>${agent(session)}</bdi></b>${session.model !== undefined && html` <span class="model"><bdi>${session.model}</bdi></span>`}</span>
        <span class="what">${what}${session.changed_at !== undefined && html` <${Age} at=${session.changed_at} />`}</span>
      </li>`;
    })}
    ${more > 0 && html`<li class="more">${count(more, "more agent")}</li>`}
  </ul>`;
}

function Numbers({ git }) {
  const changed = git.insertions !== undefined || git.deletions !== undefined || git.files !== undefined;
  const away = git.ahead !== undefined || git.behind !== undefined;
  if (!changed && !away) return null;
  const { insertions = 0, deletions = 0, ahead = 0, behind = 0 } = git;
  const clean = insertions === 0 && deletions === 0 && (git.files ?? 0) === 0;
  return html`<p class="numbers">
    ${changed && (clean
      ? html`<span class="changes calm">no changes</span>`
      : html`<span class="changes" title="lines and files against the base">
          <span class="plus">+${insertions.toLocaleString("en")}</span> <span class="minus ${deletions ? "" : "calm"}">−${deletions.toLocaleString("en")}</span>
          ${git.files !== undefined && html` <span class="files">${count(git.files, "file")}</span>`}
        </span>`)}
    ${away && (ahead > 0 || behind > 0) && html`<span class="distance" title="commits ahead of the base, and behind it">
      ${ahead > 0 && html`<span><span aria-hidden="true">↑</span>${ahead}<span class="unseen"> ahead</span></span>`}
      ${behind > 0 && html`<span><span aria-hidden="true">↓</span>${behind}<span class="unseen"> behind</span></span>`}
    </span>`}
  </p>`;
}

function Chips({ entry }) {
  const { git = {}, pr = {}, ci = {}, ratchet = {}, run = {} } = entry;
  const chips = [
    git.operation && chip("operation", "call", "loop", plain(git.operation), "a " + plain(git.operation) + " is under way"),
    git.conflicted > 0 && chip("conflicts", "fail", "conflict", count(git.conflicted, "conflict"), "files with conflicts"),
    pr.number !== undefined && pullRequest(pr),
    pr.mergeable === "conflicting" && chip("mergeable", "fail", "conflict", "conflicts with base", "the pull request cannot be merged as it is"),
    checks(ci),
    pr.review !== undefined && review(pr.review),
    ratchet.enabled === true && chip("ratchet", ratchet.stalled ? "fail" : "calm", "loop", ratchet.stalled ? "ratchet stalled" : "ratchet", "automation works on the pull request"),
    (run.state !== undefined || run.port !== undefined) && runScript(run),
  ].filter(Boolean);
  return chips.length ? html`<ul class="chips">${chips}</ul>` : null;
}

function chip(key, colour, drawing, text, why, link) {
  const inside = html`${icon(drawing)}<span>${text}</span>`;
  return html`<li key=${key} class="chip ${key}" data-tone=${colour}>${
    link ? html`<a href=${link} title=${why} target="_blank" rel="noopener noreferrer">${inside}</a>` : html`<span title=${why}>${inside}</span>`
  }</li>`;
}

function pullRequest({ number, state, url, health }) {
  const colour = { open: "good", merged: "done", closed: "fail" }[state] ?? "calm";
  const text = "#" + number + (state === undefined || state === "open" ? "" : " " + plain(state));
  const drawing = health === "failing" ? "alert" : state === "merged" ? "merge" : "pr";
  const why = "pull request, " + plain(state) + (health === "failing" ? "; it could not be fetched lately" : "");
  return chip("pr", colour, drawing, text, why, WEB.test(url ?? "") ? url : undefined);
}

function checks({ state, passed, failed, pending }) {
  if (state === undefined) return null;
  const [colour, drawing] = { success: ["good", "check"], failure: ["fail", "cross"], pending: ["work", "clock"] }[state] ?? ["calm", "help"];
  const all = (passed ?? 0) + (failed ?? 0) + (pending ?? 0);
  const text = state === "failure" && failed ? "CI " + failed + " failed" : all && state !== "success" ? "CI " + (passed ?? 0) + "/" + all : "CI";
  return chip("ci", colour, drawing, text, "checks: " + plain(state) + (all ? ` (${passed ?? 0} passed, ${failed ?? 0} failed, ${pending ?? 0} pending)` : ""));
}

function review(state) {
  const [colour, drawing, text] = { approved: ["good", "check", "approved"], changes_requested: ["call", "eye", "changes requested"], required: ["calm", "eye", "review required"] }[state] ?? ["calm", "eye", plain(state)];
  return chip("review", colour, drawing, text, "review of the pull request");
}

function runScript({ state, port }) {
  const colour = { running: "good", starting: "work", failed: "fail" }[state] ?? "calm";
  const text = (port === undefined ? "run" : ":" + port) + (state === "running" || state === undefined ? "" : " " + plain(state));
  return chip("run", colour, "play", text, "run script, " + plain(state), state === "running" && port !== undefined ? address(port) : undefined);
}

/**
 * Where a run script on this host is reached; nowhere if the board is looked at from another host. Cookies know no ports:
 * under another name of the same host it does not get ours.
 */
function address(port) {
  const other = { "127.0.0.1": "localhost", localhost: "127.0.0.1", "[::1]": "localhost" }[location.hostname];
  return other && "http://" + other + ":" + port + "/";
}
