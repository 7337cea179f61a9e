"""The mutation gate: seeded bugs in the pure core, each of which the laws or the unit tests must kill.

    python -m tests.laws.mutants [NAME…]      all of them, or those whose name contains a NAME

Each mutant is one piece of text in ``pipeline/domain`` that is replaced in a copy of the tree. A text that is not
there exactly once is an error, so that the list stays in step with the source. Ends with 1 if a mutant survives, if
one breaks more than behaviour (it does not import), or if the tests fail on the copy without any mutation.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Literal, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PARALLEL: Final = 2
LONGEST_S: Final = 120.0
# Where a bug of a module is most likely to be found; all the others follow.
FIRST: Final = {
    "status": ("tests/unit/test_status.py",),
    "relook": ("tests/unit/test_relook.py",),
    "replica": ("tests/laws/test_machine.py",),
}
LAWS: Final = ("tests/laws/test_laws.py", "tests/laws/test_leases.py", "tests/laws/test_machine.py")
UNITS: Final = tuple(
    f"tests/unit/test_{name}.py" for name in ("store", "order", "versioned", "replica", "patch", "status", "relook")
)
FAILED: Final = re.compile(r"^FAILED (\S+)", re.MULTILINE)


class Mutant(NamedTuple):
    """A bug: in `module`, `old` becomes `new`."""

    name: str
    module: str
    old: str
    new: str


class Outcome(NamedTuple):
    mutant: str
    fate: Literal["passed", "killed", "broken"]
    by: str
    took_s: float


MUTANTS: Final = (
    # ── leases ──
    Mutant("a lease covers everybody", "store", " or not look.producer.startswith(LEASED)", ""),
    Mutant("a lapsed lease means idle", "store", 'state="unknown", waiting_for', 'state="idle", waiting_for'),
    Mutant("a lapsed lease keeps the request", "store", 'state="unknown", waiting_for=None', 'state="unknown"'),
    Mutant("a lapsed lease revives who exited", "store", ' or value.state == "exited":', ":"),
    Mutant("a look during the silence is shown", "store", "value if self.heard else self._shown(look, value)", "value"),
    Mutant(
        "a lease never returns", "store", "        self.heard = heard\n", "        self.heard = heard and self.heard\n"
    ),
    # ── which look is newer ──
    Mutant("arrival order wins", "order", "    mine, theirs =", "    return LATER\n    mine, theirs ="),
    Mutant("overlap applied", "order", "_agree(current, look) else DISAGREES", "_agree(current, look) else LATER"),
    Mutant(
        "stale poll applied: only the end counts", "order", "theirs.began > mine.ended", "theirs.ended > mine.ended"
    ),
    Mutant("only the beginning counts", "order", "theirs.began > mine.ended", "theirs.began > mine.began"),
    Mutant("older looks overlap", "order", "return EARLIER", "return DISAGREES"),
    Mutant("sequence ignored", "order", "    if look.seq is not None and", "    if False and look.seq is not None and"),
    Mutant(
        "run of a sequence ignored", "order", " and look.run == current.run and look.source == current.source:", ":"
    ),
    Mutant("revision ignored", "order", "    if look.revision is not None and", "    if False and"),
    Mutant(
        "database of a revision ignored",
        "order",
        " and look.domain == current.domain:\n        if look.revision >",
        ":\n        if look.revision >",
    ),
    Mutant("clock domain ignored", "order", "    if theirs.clock != mine.clock:", "    if False:"),
    Mutant("equal look not joined", "store", "entry.looks[group] = order.confirm(current, look)", "pass"),
    Mutant("join keeps the former end", "order", "max(a.ended, b.ended)", "a.ended"),
    Mutant(
        "confirmed look keeps an order that its evidence lacks",
        "order",
        ", seq=current.seq if same_run else None, revision=revision)",
        ")",
    ),
    Mutant("project is no part of life", "order", ' and (a.project == b.project or a.group != "life")', ""),
    Mutant(
        "wall clock used for order",
        "store",
        "self._admit(look, wall_ms)",
        "self._admit(replace(look, stamp=Stamp(wall_ms, wall_ms, look.stamp.clock)), wall_ms)",
    ),
    Mutant(
        "equal look thrown away with its time",
        "store",
        "        entry.looks[group] = look\n",
        "        if current is None or current.value != look.value:\n            entry.looks[group] = look\n",
    ),
    Mutant(
        "a look is as new as its end",
        "store",
        "        entry.looks[group] = look\n",
        "        end = look.stamp.ended\n"
        "        entry.looks[group] = replace(look, stamp=Stamp(end, end, look.stamp.clock))\n",
    ),
    Mutant(
        "one time for all groups of an entry",
        "store",
        "        ruling = order.weigh(current, look)\n",
        "        newest = max(entry.looks.values(), key=lambda one: one.stamp.ended)\n"
        "        late = current is not None and look.stamp.ended < newest.stamp.began\n"
        "        ruling = order.EARLIER if late else order.weigh(current, look)\n",
    ),
    Mutant(
        "a rename is no change",
        "store",
        "        elif old != (shown",
        "        elif (not isinstance(old, Life) or old.phase != value.phase) and old != (shown",
    ),
    # ── identity ──
    Mutant("wrong_key ignored", "store", "                return WRONG_KEY", "                pass"),
    Mutant("identity reset missing", "store", 'if group == "pr" and (', 'if group == "none" and ('),
    Mutant(
        "identity reset forgets the interval",
        "store",
        'entry.looks["ci"] = replace(former, value=None, key=None, seq=None, revision=None)',
        'del entry.looks["ci"]',
    ),
    Mutant(
        "incarnation ignored",
        "store",
        "if entry is None or look.incarnation != entry.incarnation:",
        "if entry is None:",
    ),
    Mutant("old incarnation replaces", "store", "if look.incarnation < entry.incarnation:", "if False:"),
    # ── creation and burial ──
    Mutant("missing fence", "store", "if look.stamp.began <= self.fence:", "if False:"),
    Mutant(
        "fence does not exclude itself",
        "store",
        "if look.stamp.began <= self.fence:",
        "if look.stamp.began < self.fence:",
    ),
    Mutant(
        "fence not raised on tombstone eviction", "store", "self.fence = max(self.fence, forgotten.stamp.ended)", "pass"
    ),
    Mutant("tombstone ignored", "store", "                return BURIED", "                pass"),
    Mutant("archive not final", "store", "        not tombstone.final\n        and look.group", "        look.group"),
    Mutant(
        "tombstone gives way to an older incarnation",
        "store",
        "        and look.incarnation == tombstone.incarnation\n",
        "",
    ),
    Mutant("absence undone by an older look", "store", "        and look.stamp.began > tombstone.stamp.ended\n", ""),
    Mutant(
        "end of an unknown workspace not remembered",
        "store",
        'return self._leave_unborn(entry, look, final=value.phase == "archived")',
        "return NOT_LIVE",
    ),
    Mutant(
        "late creation of what a census missed", "store", "if entry is None and self._is_too_late(look):", "if False:"
    ),
    # ── census ──
    Mutant(
        "newborn buried by census",
        "store",
        'and _before(entry.looks["life"].stamp, census)',
        'and entry.looks["life"].stamp.began < census.ended',
    ),
    Mutant(
        "absent workspaces stay",
        "store",
        "        absent = self._absent(census.stamp, seen)",
        "        absent: list[str] = []",
    ),
    Mutant("mass-delete guard off", "store", "held = self._mass_delete(absent) and ", "held = False and "),
    Mutant("a replaced database deletes in mass", "store", " or self._of_another(absent, census))", ")"),
    Mutant("another database confirms a mass delete", "store", "self._held != census.domain", "self._held is None"),
    Mutant(
        "late or doubled census counts",
        "store",
        "return self._census is None or _before(self._census, census.stamp)",
        "return True",
    ),
    Mutant("incomplete census counts", "store", "if not census.complete or census", "if census"),
    Mutant("census from before the start completes", "store", "or census.stamp.began > self.fence", "or True"),
    Mutant(
        "absent sessions stay",
        "store",
        "            self._end_absent_sessions(census, drift, wall_ms)",
        "            pass",
    ),
    Mutant(
        "sweep while a census is held",
        "store",
        "if self._census is None or self._held is not None:",
        "if self._census is None:",
    ),
    Mutant("a held census settles", "store", "if self.complete and not held:", "if self.complete:"),
    Mutant("what a census confirms is drift", "store", 'if known and ruling.verdict == "applied":', "if known:"),
    Mutant(
        "what did not change is a version",
        "store",
        "        if not changes:\n            return ruling",
        "        if False:\n            return ruling",
    ),
    # ── bounds ──
    Mutant("session cap off", "store", "            return TOO_MANY", "            pass"),
    Mutant(
        "late look at a session that a census missed",
        "store",
        "            return SESSION_NOT_SEEN",
        "            pass",
    ),
    Mutant(
        "forgotten session raises no fence",
        "store",
        "entry.session_fence = max(entry.session_fence, entry.looks.pop(name).stamp.ended)",
        "del entry.looks[name]",
    ),
    Mutant(
        "deleted sessions kept for ever",
        "store",
        "for name in empty[: max(0, len(empty) - self.limits.max_sessions)]:",
        "for name in empty[:0]:",
    ),
    Mutant(
        "history of groups that do not exist",
        "store",
        "if entry is None or group not in entry.looks:",
        "if entry is None:",
    ),
    Mutant("entries unbounded", "store", "len(self.entries) >= self.limits.max_entries", "False"),
    Mutant("tombstones unbounded", "store", "while len(self.tombstones) > self.limits.max_tombstones:", "while False:"),
    Mutant(
        "evicted without a trace",
        "store",
        'self._bury(workspace, self.entries[workspace].looks["life"].stamp, final=False)',
        "del self.entries[workspace], self.ledger(victim).entries[workspace]",
    ),
    Mutant(
        "evicted project called complete",
        "store",
        "self.complete and project not in self._evicted_from",
        "self.complete",
    ),
    # ── what is public ──
    Mutant(
        "status not re-derived",
        "store",
        "if group.startswith(SESSION_PREFIX) or group in status.INPUTS:",
        "if group in status.INPUTS:",
    ),
    Mutant("move between projects ignored", "store", "            if moved:", "            if False:"),
    Mutant(
        "a move leaves a ghost",
        "store",
        "        self.ledger(entry.project).remove(look.workspace)\n        entry.project",
        "        entry.project",
    ),
    Mutant("returned project counts from the start", "store", "Ledger(self._base)", "Ledger()"),
    Mutant(
        "plan and question change places",
        "status",
        '("plan", "needs_plan_approval"),\n    ("question", "needs_answer"),',
        '("question", "needs_answer"),\n    ("plan", "needs_plan_approval"),',
    ),
    Mutant(
        "checks of a draft call for a merge",
        "status",
        'if checks == "success" and pr.state == "open":',
        'if checks == "success":',
    ),
    # ── versions ──
    Mutant("since() off by one field", "versioned", "if changed > version}", "if changed > version + 1}"),
    Mutant("since() off by one entry", "versioned", "if entry.version <= version:", "if entry.version <= version + 1:"),
    Mutant("removed workspace not in since", "versioned", "if left_at <= version:", "if True:"),
    Mutant(
        "revived workspace without nulls", "versioned", "entry.group(name).set(dict.fromkeys(fields), left_at)", "pass"
    ),
    Mutant(
        "cleared field lost",
        "versioned",
        "            versions[field] = version",
        "            if value is not None:\n                versions[field] = version",
    ),
    Mutant(
        "cleared group lost",
        "versioned",
        "        if not values:\n            return None",
        "        if not values:\n            return {}",
    ),
    Mutant(
        "hash not updated on removal",
        "versioned",
        "entry.shape())\n        self._dirty.add(workspace)",
        "entry.shape())",
    ),
    Mutant(
        "delta below the floor",
        "versioned",
        "if version < self.floor or version > self.version or self",
        "if version > self.version or self",
    ),
    Mutant(
        "delta for a cursor ahead",
        "versioned",
        "if version < self.floor or version > self.version or self",
        "if version < self.floor or self",
    ),
    Mutant("forgotten removal leaves the floor", "versioned", "self.floor = max(self.floor, left_at)", "pass"),
    Mutant(
        "forgotten group leaves the floor",
        "versioned",
        "            self.floor = max(self.floor, version)",
        "            pass",
    ),
    Mutant("entries not in order of change", "versioned", "self.entries.move_to_end(workspace)", "pass"),
    Mutant("removed workspaces kept for ever", "versioned", "while len(self.gone) > GONE_CAP:", "while False:"),
    Mutant("emptied groups kept for ever", "versioned", "        if emptied:", "        if False:"),
    Mutant("former groups of the revived kept for ever", "versioned", "emptied = entry is None", "emptied = False"),
    Mutant(
        "follower answers from within a step", "versioned", "            if began < version:", "            if False:"
    ),
    Mutant(
        "forgotten step leaves the floor",
        "versioned",
        "self.floor = max(self.floor, self._steps.popleft()[1])",
        "self._steps.popleft()",
    ),
    Mutant(
        "image without what left",
        "versioned",
        "for workspace, (left_at, shape) in gone.items():",
        "for workspace, (left_at, shape) in ():",
    ),
    Mutant(
        "image hides what a change left no trace of",
        "versioned",
        "entry.version = last  #",
        "entry.version = max((g.version for g in entry.groups.values()), default=0)  #",
    ),
    Mutant("null of a patch kept", "patch", "            result.pop(key, None)", "            result[key] = None"),
    Mutant("hash blind to the name", "patch", '_canonical(workspace) + b","', 'b"0,"'),
    Mutant("empty groups hashed", "patch", "if value != {}}", "}"),
    # ── followers ──
    Mutant("ignored gap", "replica", "if from_ > ledger.version:", "if False:"),
    Mutant("replica takes an old delta", "replica", "if to <= ledger.version:", "if False:"),
    Mutant(
        "replica takes a delta of another epoch",
        "replica",
        "return self._forming if epoch == self._forming_epoch else None",
        "return self._forming or self.ledger",
    ),
    Mutant(
        "replica shows an incomplete new epoch",
        "replica",
        "if complete or (self.ledger is not None and epoch == self.epoch):",
        "if True:",
    ),
    Mutant("lost last delta unnoticed", "replica", "if version > ledger.version:", "if False:"),
    Mutant("wrong hash unnoticed", "replica", "if version == ledger.version and ledger.hash() != hash_:", "if False:"),
    Mutant(
        "late image takes the copy back",
        "replica",
        "if held is not None and ledger.version < held.version and not self._wrong:",
        "if False:",
    ),
    Mutant("wrong copy keeps itself", "replica", "            self._wrong = True\n", ""),
    Mutant(
        "a group's last change answers every cursor",
        "versioned",
        "group.last if version >= group.before else group.since(version)",
        "group.last",
    ),
    Mutant(
        "a group that was emptied field by field is answered by its last change",
        "versioned",
        "self.before = self.version if values else NEVER",
        "self.before = self.version",
    ),
    Mutant(
        "who said it before may say that there is nothing",
        "store",
        "(not known or value is None) and ",
        "not known and ",
    ),
    Mutant(
        "relook never slows down", "relook", "min(2 * self.wanted[subject][1], LONGEST_NS)", "self.wanted[subject][1]"
    ),
    Mutant("relook begins anew each time", "relook", "(workspace, group) not in self.wanted and ", ""),
)


def copy_tree(to: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "pipeline", to / "pipeline", ignore=ignored)
    for part in ("tests/laws", "tests/golden"):
        shutil.copytree(ROOT / part, to / part, ignore=ignored)
    (to / "tests/unit").mkdir()
    for file in ("tests/__init__.py", "tests/conftest.py", "tests/unit/__init__.py", *UNITS):
        shutil.copyfile(ROOT / file, to / file)
    (to / "pytest.ini").write_text("[pytest]\n")


def apply(mutant: Mutant, tree: Path) -> None:
    file = tree / "pipeline/domain" / f"{mutant.module}.py"
    text = file.read_text()
    if (found := text.count(mutant.old)) != 1:
        raise SystemExit(
            f"mutant “{mutant.name}”: its text is {found} times in pipeline/domain/{mutant.module}.py, not once. "
            "Bring tests/laws/mutants.py up to date with the source."
        )
    file.write_text(text.replace(mutant.old, mutant.new))


def run(mutant: Mutant | None) -> Outcome:
    """Run the tests against a copy of the tree with this mutation, or with none."""
    began = time.monotonic()
    name = mutant.name if mutant is not None else "(no mutation)"
    with tempfile.TemporaryDirectory(prefix="treewire-mutant-") as directory:
        tree = Path(directory)
        copy_tree(tree)
        if mutant is not None:
            apply(mutant, tree)
        environment = {
            **os.environ,
            "PYTHONPATH": directory,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "HYPOTHESIS_PROFILE": "gate",
        }
        plugins = ("-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin")
        first = FIRST.get(mutant.module, ()) if mutant is not None else ()
        files = dict.fromkeys((*first, *LAWS[:1], *UNITS, *LAWS[1:]))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", *plugins, *files]
        try:
            done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            return Outcome(name, "killed", "it never ended", time.monotonic() - began)
    took = time.monotonic() - began
    if done.returncode == 0:
        return Outcome(name, "passed", "", took)
    failed = FAILED.search(done.stdout)
    if done.returncode != 1 or failed is None:
        return Outcome(name, "broken", done.stdout[-2000:] + done.stderr[-2000:], took)
    return Outcome(name, "killed", failed[1].removeprefix("tests/"), took)


def main(names: list[str]) -> int:
    began = time.monotonic()
    chosen = [one for one in MUTANTS if not names or any(name in one.name for name in names)]
    if not chosen:
        print("No mutant has such a name.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="treewire-mutant-") as directory:
        copy_tree(Path(directory))
        for mutant in chosen:
            apply(mutant, Path(directory))
            shutil.copytree(ROOT / "pipeline/domain", Path(directory) / "pipeline/domain", dirs_exist_ok=True)
    sound = run(None)
    print(f"{sound.fate:<9}{sound.took_s:6.1f} s  {sound.mutant}", flush=True)
    if sound.fate != "passed":
        print(f"The tests fail without any mutation: {sound.by}", file=sys.stderr)
        return 1
    survivors = broken = 0
    with ThreadPoolExecutor(PARALLEL) as pool:
        for outcome in pool.map(run, chosen):
            fate = {"passed": "SURVIVED", "killed": "killed", "broken": "BROKEN"}[outcome.fate]
            print(f"{fate:<9}{outcome.took_s:6.1f} s  {outcome.mutant:<56}{outcome.by}", flush=True)
            survivors += outcome.fate == "passed"
            broken += outcome.fate == "broken"
    print(
        f"{len(chosen)} mutants: {len(chosen) - survivors - broken} killed, {survivors} survived, {broken} broken, "
        f"in {time.monotonic() - began:.0f} s"
    )
    return 1 if survivors or broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
