// Which workspaces stand where: from what is held and what is looked for to the columns of the board. Pure.

import { COLUMNS, columnOf, matches, needsUser, rankOf, since, termsOf } from "/words.js";

const rows = new WeakMap(); // entries never change, and each is of one workspace

/** An entry with its place: the same object for as long as the entry is the same. */
function rowOf(project, id, entry) {
  let row = rows.get(entry);
  if (row === undefined || row.project !== project || row.id !== id) {
    row = { key: project + "/" + id, project, id, entry, at: since(entry), needs: needsUser(entry), rank: rankOf(entry), column: columnOf(entry) };
    rows.set(entry, row);
  }
  return row;
}

const byKey = (a, b) => (a.key < b.key ? -1 : 1);
const oldestFirst = (a, b) => (a.at ?? Infinity) - (b.at ?? Infinity) || byKey(a, b);
const newestFirst = (a, b) => (b.at ?? 0) - (a.at ?? 0) || byKey(a, b);
const mostPressing = (a, b) => a.rank - b.rank || oldestFirst(a, b);
const needsFirst = (a, b) => b.needs - a.needs || (a.needs ? mostPressing : newestFirst)(a, b);

/**
 * The board for one project (or all, with an empty name) and a search:
 * `columns` of rows, `needs` with the most pressing first and the older first within a kind, `needed` in all projects whatever is looked for,
 * `total` workspaces before the search, `shown` after it, `loading` projects without a first snapshot.
 */
export function arrange(live, { project = "", search = "" } = {}) {
  const terms = termsOf(search);
  const board = { columns: {}, needs: [], needed: 0, total: 0, shown: 0, loading: 0, projects: live.projects };
  for (const column of COLUMNS) board.columns[column] = [];
  for (const { id: of, name } of live.projects) {
    const wanted = project === "" || project === of;
    const held = live.followed.get(of);
    if (!held) continue;
    if (held.workspaces === null) {
      if (wanted && held.state !== "refused") board.loading += 1;
      continue;
    }
    for (const [id, entry] of Object.entries(held.workspaces)) {
      const row = rowOf(of, id, entry);
      if (row.needs) board.needed += 1;
      if (!wanted) continue;
      board.total += 1;
      if (terms.length && !matches(id, entry, name, terms)) continue;
      board.shown += 1;
      board.columns[row.column].push(row);
      if (row.needs) board.needs.push(row);
    }
  }
  board.needs.sort(mostPressing);
  for (const column of COLUMNS) board.columns[column].sort(column === "waiting" ? needsFirst : newestFirst);
  return board;
}
