// What the values of an entry are called on the board. Pure; a value that nobody told us of is shown as it is.

const CODES = {
  merged: ["merged", "merge", "the pull request is merged"],
  pr_closed: ["PR closed", "cross", "the pull request was closed"],
  needs_plan_approval: ["approve plan", "plan", "an agent waits for its plan to be approved"],
  needs_answer: ["answer question", "question", "an agent waits for an answer"],
  needs_permission: ["give permission", "shield", "an agent waits for a permission"],
  needs_auth: ["sign in", "key", "an agent waits for somebody to sign in"],
  session_error: ["agent failed", "alert", "an agent reported an error, or ended although nobody ended it"],
  setting_up: ["setting up", "", "the workspace is being set up"],
  setup_failed: ["setup failed", "alert", "the workspace could not be set up"],
  agent_working: ["working", "", "an agent works"],
  starting_session: ["starting", "", "an agent is being started"],
  auto_iterating: ["iterating", "loop", "an automatic iteration is running"],
  ratchet_stalled: ["ratchet stalled", "alert", "the ratchet is on and cannot go on by itself"],
  fixing_merge_conflict: ["fixing conflict", "loop", "the pull request conflicts, and the ratchet mends it"],
  merge_conflict: ["resolve conflict", "conflict", "the pull request conflicts with its base, and no ratchet is on"],
  waiting_for_ci: ["waiting for CI", "clock", "the pull request is open, and its checks are not through"],
  fixing_review_comments: ["fixing review", "loop", "the ratchet works on review comments"],
  fixing_ci_failures: ["fixing CI", "loop", "checks failed, and the ratchet mends them"],
  ci_failed: ["fix CI", "conflict", "checks of the pull request failed, and no ratchet is on"],
  checking_pr: ["checking PR", "loop", "the checks pass, and the ratchet has still to see it"],
  ready_to_merge: ["ready to merge", "check", "the pull request is open and its checks passed"],
  ready_for_review: ["ready for review", "eye", "the pull request is open, and no check speaks against it"],
  session_unknown: ["unknown", "help", "nothing was heard of an agent for too long"],
  no_session_started: ["no agent yet", "", "no agent has been started here"],
  ready_for_next_prompt: ["idle", "", "agents have been here, and none works now"],
};

// Groups that a status follows from, most deciding first: whose age is its age, and where a story begins.
const FOLLOWS = {
  merged: ["pr"], pr_closed: ["pr"], setting_up: ["life"], setup_failed: ["life"], auto_iterating: ["ratchet"],
  ratchet_stalled: ["ratchet", "pr"], fixing_merge_conflict: ["pr", "ratchet"], merge_conflict: ["pr", "ratchet"],
  waiting_for_ci: ["ci", "pr"], fixing_review_comments: ["ratchet", "pr"], fixing_ci_failures: ["ci", "ratchet"],
  ci_failed: ["ci", "pr"], checking_pr: ["ratchet", "ci"], ready_to_merge: ["ci", "pr"], ready_for_review: ["pr", "ci"],
};
const WAITS = { needs_plan_approval: "plan", needs_answer: "question", needs_permission: "permission", needs_auth: "auth" };
const FAILURES = new Set(["session_error", "setup_failed", "ratchet_stalled", "merge_conflict", "ci_failed"]);

/** What needs the user, most pressing first: as `pipeline/domain/status.py` has it. */
export const ATTENTION = [
  ["session_error", "setup_failed"],
  ["needs_permission"],
  ["needs_plan_approval"],
  ["needs_answer", "needs_auth"],
  ["merge_conflict", "ci_failed", "ratchet_stalled"],
  ["ready_to_merge"],
];
const RANKS = new Map(ATTENTION.flatMap((codes, rank) => codes.map((code) => [code, rank])));

/** How pressing an entry is that needs the user, 0 first; what is not known here comes last. */
export function rankOf(entry) {
  return RANKS.get(entry.status?.code) ?? ATTENTION.length;
}

/** An address that may become a link: any other scheme could run something. */
export const WEB = /^https?:\/\//i;
export const COLUMNS = ["working", "waiting", "done"];

/** `needs_plan_approval` and the like, where there is no better word. */
export function plain(code) {
  return String(code ?? "unknown").replaceAll("_", " ");
}

/** What a status is called, drawn as, and follows from. */
export function status(code) {
  const [label, icon, why] = CODES[code] ?? [plain(code), "help", "this board does not know the status " + plain(code)];
  return { label, icon: icon || "dot", why, groups: FOLLOWS[code] ?? (code in CODES ? ["session"] : []) };
}

/** Which colour speaks of it: `fail`, `call`, `work`, `good`, `done` or `calm`. */
export function tone({ code, column, needs_user } = {}) {
  if (FAILURES.has(code)) return "fail";
  if (code === "ready_to_merge" || code === "ready_for_review") return "good";
  if (needs_user) return "call";
  if (column === "working") return "work";
  return code === "merged" ? "done" : "calm";
}

/** The column that an entry stands in; a status that is not known here waits for somebody to look. */
export function columnOf(entry) {
  const column = entry.status?.column;
  return COLUMNS.includes(column) ? column : "waiting";
}

export function needsUser(entry) {
  return entry.status?.needs_user === true;
}

/** Since when it has been so, in milliseconds of the wall clock: as the deciding session says, else as the status does. */
export function since(entry) {
  const kind = WAITS[entry.status?.code];
  const waiting = kind && Object.values(entry.sessions ?? {}).filter((one) => one.state === "waiting" && (one.waiting_for ?? "question") === kind);
  const told = (waiting || []).map((one) => one.changed_at).filter(Number.isFinite);
  return told.length ? Math.min(...told) : entry.status?.changed_at ?? entry.life?.changed_at ?? null;
}

/** Seconds, minutes, hours or days: what a glance needs. */
export function age(then, now = Date.now()) {
  const seconds = Math.max(0, Math.floor((now - then) / 1000));
  if (seconds < 60) return seconds + " s";
  if (seconds < 3600) return Math.floor(seconds / 60) + " min";
  if (seconds < 86_400) return Math.floor(seconds / 3600) + " h";
  return Math.floor(seconds / 86_400) + " d";
}

export function title(id, entry) {
  return entry?.life?.name ?? id;
}

export function branchOf(entry) {
  return entry.git?.branch ?? entry.life?.branch;
}

export function count(number, one, many = one + "s") {
  return number.toLocaleString("en") + " " + (number === 1 ? one : many);
}

/** Sessions with the most pressing first, as [id, session]. */
export function sessionsOf(entry) {
  const order = ["waiting", "error", "working", "starting", "unknown", "idle", "exited"];
  const rank = ([, one]) => (one.crashed ? 1 : order.indexOf(one.state) === -1 ? order.length : order.indexOf(one.state));
  return Object.entries(entry.sessions ?? {}).sort((a, b) => rank(a) - rank(b) || (a[0] < b[0] ? -1 : 1));
}

/** What an agent does, in words, and the colour for it. */
export function doing({ state, waiting_for, crashed }) {
  if (crashed) return ["crashed", "fail"];
  if (state === "waiting") return ["waits for " + ({ auth: "sign-in", plan: "plan approval" }[waiting_for] ?? plain(waiting_for ?? "an answer")), "call"];
  const tones = { working: "work", starting: "work", error: "fail" };
  return [plain(state), tones[state] ?? "calm"];
}

export function agent(session) {
  return session.provider ?? session.name ?? "agent";
}

// ── search ───────────────────────────────────────────────────────────────────────────────────────

const sought = new WeakMap(); // entries never change, so each is spelt out once

/** Whether every word of the search is found in what the card of this entry says. */
export function matches(id, entry, project, terms) {
  let text = sought.get(entry);
  if (text === undefined) {
    const { label } = status(entry.status?.code);
    const agents = Object.values(entry.sessions ?? {}).flatMap((one) => [one.provider, one.name, one.model, doing(one)[0]]);
    const pr = entry.pr?.number === undefined ? "" : "#" + entry.pr.number;
    text = [id, entry.life?.name, branchOf(entry), label, plain(entry.status?.code), entry.git?.operation, pr, ...agents].join("\n").toLowerCase();
    sought.set(entry, text);
  }
  return terms.every((term) => text.includes(term) || project.toLowerCase().includes(term));
}

export function termsOf(search) {
  return search.toLowerCase().split(/\s+/).filter(Boolean);
}

// ── health ───────────────────────────────────────────────────────────────────────────────────────

const PARTS = {
  aggregator: "The aggregator is not heard of: what you see is the last that was known.",
  database: "The database cannot be used: new events are refused, what is known stays.",
  reconciler: "No census is taken: what events missed is not put right.",
  git: "Worktrees are not measured: changes, ahead and behind may be old.",
  sources: "Worktrees are not discovered: new ones do not appear.",
};

/** Each part that is not well, with what that means for who looks at the board. */
export function ailing(health) {
  const told = [];
  for (const [part, state] of Object.entries(health)) {
    if (state !== null && typeof state === "object") {
      told.push(...ailing(state));
    } else if (state !== "ok") {
      told.push({ part: plain(part), state: plain(state), means: PARTS[part] ?? "" });
    }
  }
  return told;
}
