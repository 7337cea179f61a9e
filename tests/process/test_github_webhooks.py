"""Webhooks at a real gateway: who knows the secret hints, everybody else is refused, and a hint leads to a look."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway import webhooks
from pipeline.bus import HintsServer
from pipeline.runtime.place import OperatorError
from pipeline.runtime.settings import Settings
from pipeline.wire import Hint
from tests.github import sha
from tests.world import Child, World, environment

SECRET = b"a secret of many letters"
PUSH = {"ref": "refs/heads/feature", "after": sha(1), "repository": {"full_name": "acme/web"}}


def signed(body: bytes, secret: bytes = SECRET) -> str:
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


class Door:
    """A gateway with a secret, and the end at which hints arrive."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hints: list[Hint] = []
        self.n = 0

    async def send(
        self, payload: Any = PUSH, event: str = "push", delivery: str | None = None, **headers: str | None
    ) -> int:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.n += 1
        named: dict[str, str | None] = {
            "X-GitHub-Event": event,
            "X-GitHub-Delivery": delivery or f"delivery-{self.n}",
            "X-Hub-Signature-256": signed(body),
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        given = {name: value for name, value in named.items() if value is not None}
        url = self.world.url + "v1/webhooks/github"
        async with self.world.http.post(url, data=body, headers=given) as answer:
            return answer.status

    async def connected(self) -> None:
        """The first may be sent before anybody listens; and then more than one may be on its way."""

        async def arrives() -> bool:
            assert await self.send() == 204
            return bool(self.hints)

        await self.world.until(arrives, "a hint")
        last = {**PUSH, "after": sha(8)}
        assert await self.send(last) == 204
        await self.world.until(lambda: any(hint.sha == sha(8) for hint in self.hints), "the last of them")

    async def heard(self, count: int) -> list[Hint]:
        await self.world.until(lambda: len(self.hints) >= count, f"{count} hints")
        return self.hints


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def door(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    home = tmp_path_factory.mktemp("tw")
    home.chmod(0o700)
    (home / "treewire.toml").write_text("[gateway]\nport = 0\n")
    (home / "github-webhook-secret").write_bytes(SECRET + b"\n")
    (home / "github-webhook-secret").chmod(0o600)
    settings = Settings.load(home, environ=environment())
    gateway = Child(settings, "gateway")
    world = World(settings, gateway, [gateway])

    @asynccontextmanager
    async def opened() -> AsyncIterator[Door]:
        async with world.running():
            made = Door(world)
            server = HintsServer(settings.run_dir, made.hints.extend)
            try:
                await made.connected()
                yield made
            finally:
                server.close()

    standing = opened()
    try:
        yield runner.run(standing.__aenter__())
    finally:
        runner.run(standing.__aexit__(None, None, None))
        gateway.end()


@pytest.fixture(autouse=True)
def fresh(door: Door) -> None:
    door.hints.clear()


def test_a_webhook_with_our_signature_is_a_hint(door: Door, runner: asyncio.Runner) -> None:
    async def test() -> None:
        assert await door.send() == 204
        assert await door.heard(1) == [Hint("acme/web", "feature", sha(1))]
        door.hints.clear()
        run = {"check_run": {"head_sha": sha(2), "check_suite": {"head_branch": "x"}}, "repository": PUSH["repository"]}
        assert await door.send(run, "check_run") == 204
        assert await door.heard(1) == [Hint("acme/web", "x", sha(2))]

    runner.run(test())


@pytest.mark.parametrize(
    "wrong",
    [
        {"X_Hub_Signature_256": None},
        {"X_Hub_Signature_256": ""},
        {"X_Hub_Signature_256": "sha256="},
        {"X_Hub_Signature_256": "sha256=" + "0" * 64},
        {"X_Hub_Signature_256": signed(json.dumps(PUSH).encode(), b"another secret")},
        {"X_Hub_Signature_256": signed(b"another body")},
        {"X_Hub_Signature_256": signed(json.dumps(PUSH).encode()).removeprefix("sha256=")},
        {"X_Hub_Signature_256": signed(json.dumps(PUSH).encode()).upper()},
        {"X_Hub_Signature_256": None, "X_Hub_Signature": "sha1=" + "0" * 40},
    ],
    ids=str,
)
def test_what_is_not_signed_by_us_is_refused_and_hints_at_nothing(
    door: Door, runner: asyncio.Runner, wrong: dict[str, str | None]
) -> None:
    async def test() -> None:
        assert await door.send(**wrong) in (401, 429)
        # Neither the operator's token nor a page of ours can stand in for it.
        assert await door.send(**wrong, **door.world.bearer) in (401, 429)
        assert await door.send({**PUSH, "after": sha(9)}) == 204
        assert await door.heard(1) == [Hint("acme/web", "feature", sha(9))]

    runner.run(test())


def test_a_delivery_that_comes_again_is_answered_and_does_nothing(door: Door, runner: asyncio.Runner) -> None:
    async def test() -> None:
        assert [await door.send(delivery="one") for _ in range(3)] == [204] * 3
        assert await door.send({**PUSH, "ref": "refs/heads/last"}, delivery="two") == 204
        hints = await door.heard(2)
        assert [hint.branch for hint in hints] == ["feature", "last"]

    runner.run(test())


def test_what_says_nothing_of_a_branch_is_answered_well(door: Door, runner: asyncio.Runner) -> None:
    async def test() -> None:
        assert await door.send({"zen": "Keep it simple.", "hook_id": 1}, "ping") == 204
        assert await door.send({"action": "created", "repository": PUSH["repository"]}, "star") == 204
        assert await door.send(b"[]") == 204
        assert await door.send(b"payload=%7B%7D") == 400
        assert await door.send(b"[" * 100_000) == 400
        assert await door.send(Content_Encoding="gzip") == 415
        assert door.hints == []

    runner.run(test())


def test_a_body_without_end_is_cut_off_whether_its_length_is_told_or_not(door: Door, runner: asyncio.Runner) -> None:
    async def test() -> None:
        body = b" " * (webhooks.MAX_BYTES + 1)
        assert await door.send(body) == 413

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(1000):
                yield b" " * (1 << 16)

        url, headers = door.world.url + "v1/webhooks/github", {"X-Hub-Signature-256": signed(b"")}
        try:
            async with door.world.http.post(url, data=chunks(), headers=headers) as answer:
                assert answer.status == 413
        except aiohttp.ClientError:
            pass  # cut off while it was still sending
        assert await door.send() == 204

    runner.run(test())


def test_senders_that_never_end_hold_up_only_so_many(door: Door, runner: asyncio.Runner) -> None:
    async def test() -> None:
        port = int(door.world.url.rstrip("/").rpartition(":")[2])
        head = f"POST /v1/webhooks/github HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100\r\n"
        stuck = []
        for _ in range(webhooks.MAX_AT_ONCE + 4):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"{head}X-Hub-Signature-256: {signed(b'')}\r\n\r\n".encode())
            stuck.append((reader, writer))

        async def crowded() -> bool:
            return await door.send() == 503

        await door.world.until(crowded, "no more are read at once")
        assert (await door.world.get("healthz"))[0] == 200
        for _, writer in stuck:
            writer.close()

        async def free() -> bool:
            return await door.send() == 204

        await door.world.until(free, "room again", 30.0)

    runner.run(test())


def test_what_became_of_webhooks_is_counted(door: Door, runner: asyncio.Runner) -> None:
    async def test() -> None:
        before = (await door.world.get("metrics"))[2]
        assert await door.send(delivery="counted") == 204
        assert await door.send(delivery="counted") == 204

        def counted(outcome: str, text: bytes) -> float:
            lines = [line for line in text.decode().splitlines() if line.startswith("treewire_webhooks_total{")]
            return sum(float(line.split()[-1]) for line in lines if f'outcome="{outcome}"' in line)

        async def seen() -> bool:
            after = (await door.world.get("metrics"))[2]
            return all(counted(outcome, after) > counted(outcome, before) for outcome in ("hinted", "again"))

        await door.world.until(seen, "the counts")

    runner.run(test())


# ── the secret ───────────────────────────────────────────────────────────────────────────────────


def test_the_secret_is_of_the_environment_or_of_a_file_that_others_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(webhooks.VARIABLE, raising=False)
    settings = Settings(home=tmp_path)
    assert webhooks.secret_of(settings) is None
    path = tmp_path / "github-webhook-secret"
    path.write_bytes(SECRET + b"\n")
    path.chmod(0o644)
    with pytest.raises(OperatorError, match=r"the webhook secret .* can be read by others: chmod 600 it"):
        webhooks.secret_of(settings)
    path.chmod(0o600)
    assert webhooks.secret_of(settings) == SECRET
    path.write_bytes(b"\n")
    with pytest.raises(OperatorError, match="is empty"):
        webhooks.secret_of(settings)
    monkeypatch.setenv(webhooks.VARIABLE, "other")
    assert webhooks.secret_of(settings) == b"other"
