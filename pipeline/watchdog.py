"""supervisord's event listener: it revives what supervisord gave up on, and restarts what runs but no longer beats.

It judges by the boot clock, and not at all for a while after its own ticks came late: a host that slept, or was
stopped, has silent processes that are well. For a sleep too short to be told from a tick, whoever is silent must have
been so a tick before. Kept to the standard library, since it lives as long as the deployment.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from pipeline.runtime.clock import now_ns, wall_ms
from pipeline.runtime.supervisor import Fault, Unreachable, call, die_with_supervisor

NOTES = "watchdog.json"
_TICK_NS = 5_000_000_000
_BEATS_NS = 2_500_000_000  # who is well has beaten within this
_KEPT_NOTES = 20


class Order(NamedTuple):
    """What shall be done to a program, and why. ``program`` is supervisord's ``group:process``."""

    verb: Literal["kill", "revive"]
    program: str
    pid: int
    why: str


class Heard(NamedTuple):
    """Whose last beat, and when."""

    pid: int
    boot_ns: int


class Watch:
    """Decides; touches nothing. All times are nanoseconds of the boot clock."""

    def __init__(self, silent_s: float, revive_s: float, now: int) -> None:
        self.silent_ns = int(silent_s * 1e9)
        self.revive_ns = int(revive_s * 1e9)
        self.running: dict[str, tuple[int, int]] = {}
        self.fatal: dict[str, int] = {}
        self._last_tick = now
        self._grace_until = now

    def state(self, program: str, state: str, pid: int, now: int) -> None:
        """A program changed its state. Its silence counts from when it began to run."""
        self.running.pop(program, None)
        self.fatal.pop(program, None)
        if state == "RUNNING":
            self.running[program] = (pid, now)
        elif state == "FATAL":
            self.fatal[program] = now + self.revive_ns

    def tick(self, now: int, beats: dict[str, Heard]) -> list[Order]:
        """What is due. ``beats`` are by process name. What is ordered once is ordered again after the same time."""
        last, self._last_tick = self._last_tick, now
        if now - last > 2 * _TICK_NS:
            self._grace_until = now + self.silent_ns
        orders = []
        for program, due in self.fatal.items():
            if now >= due:
                orders.append(Order("revive", program, 0, "supervisord had given up on it"))
                self.fatal[program] = now + self.revive_ns
        if now < self._grace_until:
            return orders
        for program, (pid, since) in self.running.items():
            beat = beats.get(program.partition(":")[2])
            if beat is not None and beat.pid == pid and since < beat.boot_ns <= now:
                since = beat.boot_ns
            if now - since > self.silent_ns and last - since > _BEATS_NS:
                orders.append(Order("kill", program, pid, f"no beat for {(now - since) / 1e9:.0f} s"))
                since = now
            self.running[program] = (pid, since)
        return orders


def main() -> None:
    """Speak the event listener's protocol on stdin and stdout until supervisord closes them."""
    die_with_supervisor()
    os.umask(0o077)
    run_dir = Path(os.environ["TREEWIRE_RUN_DIR"])
    watch = Watch(float(os.environ["TREEWIRE_SILENT_S"]), float(os.environ["TREEWIRE_REVIVE_S"]), now_ns())
    listener = Listener(run_dir, watch, own=os.environ.get("SUPERVISOR_PROCESS_NAME", ""))
    listener.serve(sys.stdin.buffer, sys.stdout.buffer)


class Listener:
    """Reads events, hands them to the watch, and carries out its orders."""

    def __init__(self, run_dir: Path, watch: Watch, own: str) -> None:
        self.run_dir = run_dir
        self.watch = watch
        self.own = own
        self.informed = False
        self.restarts: dict[str, int] = {}
        self.notes: list[dict[str, Any]] = []

    def serve(self, events: BinaryIO, answers: BinaryIO) -> None:
        while True:
            answers.write(b"READY\n")
            answers.flush()
            header = _pairs(events.readline())
            if "len" not in header:
                return
            payload = _pairs(events.read(int(header["len"])))
            self.event(header["eventname"], payload)
            answers.write(b"RESULT 2\nOK")
            answers.flush()

    def event(self, kind: str, payload: dict[str, str]) -> None:
        now = now_ns()
        if kind.startswith("TICK"):
            if not self.informed:
                self._ask_all(now)
            for order in self.watch.tick(now, _beats(self.run_dir)):
                self._carry_out(order)
            self._publish()
        elif payload.get("processname", self.own) != self.own:
            program = f"{payload['groupname']}:{payload['processname']}"
            state = kind.removeprefix("PROCESS_STATE_")
            self.watch.state(program, state, int(payload.get("pid", 0)), now)
            if state == "FATAL":
                self._note(program, f"supervisord gave up on it; revived in {self.watch.revive_ns / 1e9:.0f} s")
                self._publish()

    def _ask_all(self, now: int) -> None:
        """What changed before this listener came to life, it was not told."""
        try:
            processes = call(self.run_dir, "getAllProcessInfo")
        except (Unreachable, Fault) as error:
            _say(str(error))
            return
        self.informed = True
        for process in processes:
            program = f"{process['group']}:{process['name']}"
            known = program in self.watch.running or program in self.watch.fatal
            if process["name"] != self.own and not known:
                self.watch.state(program, process["statename"], process["pid"], now)

    def _carry_out(self, order: Order) -> None:
        try:
            if order.verb == "revive":
                call(self.run_dir, "startProcess", order.program, False)
            else:
                process = call(self.run_dir, "getProcessInfo", order.program)
                if process["statename"] != "RUNNING" or process["pid"] != order.pid:
                    return
                # Each program leads a process group of its own; what it started shall not outlive it.
                os.killpg(order.pid, signal.SIGKILL)
        except (Unreachable, Fault, ProcessLookupError) as error:
            _say(f"cannot {order.verb} {order.program}: {error}")
            return
        name = order.program.partition(":")[2]
        self.restarts[name] = self.restarts.get(name, 0) + 1
        self._note(order.program, f"{'revived' if order.verb == 'revive' else 'killed'}: {order.why}")

    def _note(self, program: str, what: str) -> None:
        name = program.partition(":")[2]
        _say(f"{name}: {what}")
        self.notes = [*self.notes, {"wall_ms": wall_ms(), "process": name, "what": what}][-_KEPT_NOTES:]

    def _publish(self) -> None:
        health = {
            "pid": os.getpid(),
            "boot_ns": now_ns(),
            "fatal": {program.partition(":")[2]: due for program, due in self.watch.fatal.items()},
            "restarts": self.restarts,
            "notes": self.notes,
        }
        fresh = self.run_dir / f"{NOTES}.new"
        try:
            fresh.write_text(json.dumps(health))
            fresh.replace(self.run_dir / NOTES)
        except OSError as error:
            _say(f"cannot write {NOTES}: {error}")


def _beats(run_dir: Path) -> dict[str, Heard]:
    beats = {}
    for path in run_dir.glob("*.beat"):
        try:
            beat = json.loads(path.read_bytes())
            beats[path.stem] = Heard(beat["pid"], beat["boot_ns"])
        except (OSError, ValueError, KeyError):  # torn or foreign: it counts as unheard this time
            continue
    return beats


def _pairs(data: bytes) -> dict[str, str]:
    return dict(pair.split(":", 1) for pair in data.decode().split() if ":" in pair)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
