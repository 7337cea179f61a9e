// What is followed: the projects, what each holds, the connection, and how old all of that is. Confirmed state only.

import { Treewire } from "/client.js";
import { needsUser } from "/words.js";

const PROJECTS_MS = 5000;
const FIRST_PROJECTS_MS = 1000;
const MAX_FOLLOWED = 32; // what one socket may subscribe to

/** Whether what is shown may no longer be so: nobody is heard who would know. */
export function isStale(live) {
  return live.connection !== "open" || live.health.aggregator === "stale";
}

/**
 * Follow every project. `changed(urgent)` after each change; `urgent` if who needs the user is not as it was.
 * `rose(project, id, entry)` for each workspace that needs the user now and, as far as was known, did not before.
 */
export function follow(changed, rose) {
  const live = {
    projects: [], // as the server lists them
    settled: false, // whether there are no others
    followed: new Map(), // project → what it holds
    connection: "connecting",
    detail: "",
    health: {},
    freshAt: null, // when what is shown was last known to be so
    prefer, // follow this project even if there are too many for one socket
  };
  let preferred = "";

  const client = new Treewire((location.protocol === "https:" ? "wss://" : "ws://") + location.host + "/v1/stream", {
    connection(state, detail) {
      live.connection = state;
      live.detail = detail;
      changed(false);
    },
    health(parts) {
      live.health = parts;
      heard();
      changed(false);
    },
  });

  function heard() {
    if (!isStale(live)) live.freshAt = Date.now();
  }

  /** A project's view, and the frames that made it so. */
  function take(project, view, frames) {
    if (view.state === "live") heard();
    const one = live.followed.get(project);
    if (!one) return;
    const before = one.workspaces;
    let urgent = false;
    if (view.workspaces !== before) {
      for (const id of touched(frames, before, view.workspaces)) {
        const [old, entry] = [before?.[id], view.workspaces?.[id]];
        const needs = entry !== undefined && needsUser(entry);
        if (needs === (old !== undefined && needsUser(old))) continue;
        urgent = true;
        if (needs && before !== null) rose(project, id, entry);
      }
    }
    // Found equal again: the mark moved, or it came once more while nothing did.
    const again = view.heard !== one.heard && view.workspaces === before && view.verified === view.version;
    if (view.verified !== null && (view.verified !== one.verified || again)) one.verifiedAt = Date.now();
    one.verified = view.verified;
    one.heard = view.heard;
    one.workspaces = view.workspaces;
    one.version = view.version;
    one.complete = view.complete;
    one.state = view.state;
    one.problem = view.problem?.message ?? "";
    if (view.state === "gone") {
      live.followed.delete(project);
      list();
    }
    changed(urgent);
  }

  /** The workspaces that may have changed: those that deltas name, all after a snapshot. */
  function touched(frames, before, after) {
    if (frames.length && frames.every((frame) => frame.type === "delta")) return new Set(frames.flatMap((frame) => Object.keys(frame.patch)));
    return new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})]);
  }

  async function list() {
    let body;
    try {
      const answer = await fetch("/v1/projects");
      if (answer.status === 401) location.replace("/"); // the cookie is no longer good: sign in
      if (!answer.ok) return;
      body = await answer.json();
    } catch {
      return; // that nobody answers, the connection says already
    }
    live.projects = body.projects;
    live.settled = body.settled;
    if (body.stale) live.health = { ...live.health, aggregator: "stale" }; // that it is over, a heartbeat says
    choose();
    changed(false);
  }

  function choose() {
    const wanted = live.projects.map((project) => project.id);
    if (wanted.includes(preferred)) wanted.unshift(preferred);
    const kept = new Set([...new Set(wanted)].slice(0, MAX_FOLLOWED));
    for (const [id, one] of live.followed) {
      if (!kept.has(id)) {
        one.end();
        live.followed.delete(id);
      }
    }
    for (const id of kept) {
      if (live.followed.has(id)) continue;
      const one = { workspaces: null, version: null, verified: null, verifiedAt: null, heard: null, complete: true, state: "loading", problem: "", end: null };
      live.followed.set(id, one);
      one.end = client.subscribe(id, (view, frames) => take(id, view, frames));
    }
  }

  function prefer(project) {
    preferred = project;
    choose();
  }

  (async function relist() {
    if (!document.hidden) await list();
    setTimeout(relist, live.projects.length ? PROJECTS_MS : FIRST_PROJECTS_MS);
  })();
  return live;
}
