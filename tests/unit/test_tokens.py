"""Tokens: in the catalog, as a gateway follows them, and by `treewire token`."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text

from gateway.tokens import SEEK_S, Caller, Tokens
from pipeline import catalog as catalogs
from pipeline.catalog import Catalog, CatalogUnavailable, TokenError, migrate
from pipeline.catalog.tokens import KEPT_MS, USED_MS, token_hash
from pipeline.cli import main
from pipeline.domain.model import Stamp
from pipeline.runtime.clock import CLOCK, now_ns, wall_ms

HOME = "the-operators-own"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/treewire.db"


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    catalog = catalogs.open_url(url)
    catalog.add_project("/srv/web", 1)
    catalog.add_project("/srv/api", 1)
    yield catalog
    catalog.close()


def remove(catalog: Catalog, project: str) -> None:
    catalog.remove_project(project, Stamp(now_ns(), now_ns(), CLOCK), 2)


# ── in the catalog ───────────────────────────────────────────────────────────────────────────────


def test_only_a_hash_of_a_token_is_kept(catalog: Catalog, tmp_path: Path) -> None:
    made = catalog.create_token(1, ["web"], "ci")
    catalog.close()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token_hash(made.secret).encode() in kept
    assert made.secret.encode() not in kept
    assert made.secret.removeprefix("tw_").encode() not in kept


def test_no_two_tokens_are_alike_and_each_has_256_bits(catalog: Catalog) -> None:
    made = [catalog.create_token(1, None) for _ in range(20)]
    assert len({one.secret for one in made}) == len({one.token.id for one in made}) == 20
    assert all(len(one.secret.removeprefix("tw_")) == 43 for one in made)  # 32 bytes, six bits a letter


def test_a_token_for_a_project_that_is_not_there_is_refused_with_those_there_are(catalog: Catalog) -> None:
    with pytest.raises(TokenError, match="no project 'wbe'; there are: api, web"):
        catalog.create_token(1, ["web", "wbe"])
    remove(catalog, "web")
    with pytest.raises(TokenError, match="there are: api"):
        catalog.create_token(1, ["web"])
    assert catalog.tokens() == []


def test_a_removed_projects_grants_end_and_do_not_return_with_it(catalog: Catalog) -> None:
    catalog.create_token(1, ["web", "api"], "both")
    catalog.create_token(1, ["web"], "one")
    catalog.create_token(1, None, "all")
    remove(catalog, "web")
    catalog.add_project("/srv/web", 3)
    assert {one.name: one.projects for one in catalog.tokens()} == {"both": ["api"], "one": [], "all": None}


def test_of_active_tokens_each_has_a_name_of_its_own_and_a_revoked_one_gives_its_name_back(catalog: Catalog) -> None:
    first = catalog.create_token(1, None, "ci").token
    for taken in ("ci", first.id):
        with pytest.raises(TokenError, match=f"named '{taken}' already"):
            catalog.create_token(2, None, taken)
    assert catalog.revoke_token("ci", 3).id == first.id
    second = catalog.create_token(4, None, "ci").token
    assert catalog.revoke_token("ci", 5).id == second.id
    assert catalog.revoke_token("ci", 6).revoked_ms == 5
    assert catalog.revoke_token(first.id, 6).revoked_ms == 3


def test_revoking_what_is_not_there_names_what_is(catalog: Catalog) -> None:
    with pytest.raises(TokenError, match="active ones: none"):
        catalog.revoke_token("ci", 1)
    catalog.create_token(1, None, "ci")
    catalog.create_token(1, None, "old", expires_ms=2)
    with pytest.raises(TokenError, match=r"active ones: ci\."):
        catalog.revoke_token("board", 3)


def test_tokens_that_ended_long_ago_are_forgotten_and_others_are_not(catalog: Catalog) -> None:
    catalog.create_token(1, ["web"], "expired", expires_ms=10)
    catalog.create_token(2, ["web"], "revoked")
    catalog.revoke_token("revoked", 10)
    catalog.create_token(3, ["web"], "active")
    catalog.create_token(10 + KEPT_MS, None, "later")
    assert [one.name for one in catalog.tokens()] == ["expired", "revoked", "active", "later"]
    catalog.create_token(11 + KEPT_MS, None, "last")
    assert [one.name for one in catalog.tokens()] == ["active", "later", "last"]
    with catalog.database.read() as tx:
        assert tx.scalars(text("SELECT count(*) FROM token_project")).one() == 1


def test_a_catalog_of_the_release_before_is_brought_along_with_all_it_holds(url: str, tmp_path: Path) -> None:
    (tmp_path / "treewire.db").touch()
    engine = create_engine(url)
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO project VALUES ('web', 'Web', '/srv/web', '', 1, NULL)"))
        identity = connection.execute(text("SELECT value FROM meta WHERE name = 'identity'")).scalar()
    engine.dispose()
    catalog = catalogs.open_url(url)
    try:
        assert catalog.identity() == identity
        assert catalog.create_token(1, ["web"]).token.projects == ["web"]
    finally:
        catalog.close()


# ── as a gateway follows them ────────────────────────────────────────────────────────────────────


class Wall:
    def __init__(self) -> None:
        self.ms = wall_ms()

    def __call__(self) -> int:
        return self.ms


def following(
    catalog: Catalog | Callable[[], Catalog], test: Callable[[Tokens], Awaitable[None]], wall: Wall | None = None
) -> None:
    async def run() -> None:
        opened: Any = (lambda: catalog) if isinstance(catalog, Catalog) else catalog
        tokens = Tokens(HOME, opened, wall=wall or wall_ms)
        try:
            await tokens.look()
            await test(tokens)
        finally:
            tokens.close()

    asyncio.run(run())


def test_the_operators_token_opens_everything_and_no_other_word_anything(catalog: Catalog) -> None:
    async def test(tokens: Tokens) -> None:
        operator = tokens.holder(HOME)
        assert operator == Caller("")
        assert operator.may("web")
        assert operator.may("whatever")
        assert operator.writes
        for wrong in ("", HOME[:-1], HOME + "x", token_hash(HOME), "tw_x", "\udc80"):
            assert await tokens.find(wrong) is None

    following(catalog, test)


def test_a_token_opens_its_projects_and_no_others(catalog: Catalog) -> None:
    made = catalog.create_token(1, ["web"], may_write=False)

    async def test(tokens: Tokens) -> None:
        caller = tokens.holder(made.secret)
        assert caller is not None
        assert caller == tokens.current(made.token.id)
        assert (caller.may("web"), caller.may("api"), caller.may(""), caller.writes) == (True, False, False, False)

    following(catalog, test)


def test_a_token_made_a_moment_ago_is_known_when_it_is_first_shown(catalog: Catalog) -> None:
    async def test(tokens: Tokens) -> None:
        made = await asyncio.to_thread(catalog.create_token, 1, ["web"])
        assert tokens.holder(made.secret) is None
        found = await tokens.find(made.secret)
        assert found is not None
        assert found.token_id == made.token.id

    following(catalog, test)


def test_wrong_tokens_do_not_become_questions_to_the_database(catalog: Catalog) -> None:
    async def test(tokens: Tokens) -> None:
        asked = 0
        reads = tokens._read

        def counted(used: dict[str, int]) -> Any:
            nonlocal asked
            asked += 1
            return reads(used)

        tokens._read = counted  # type: ignore[method-assign]
        began = asyncio.get_running_loop().time()
        for _ in range(4):
            await asyncio.gather(*(tokens.find(f"tw_wrong{n}") for n in range(200)))
        assert 0 < asked <= 1 + (asyncio.get_running_loop().time() - began) / SEEK_S

    following(catalog, test)


def test_a_revoked_token_opens_nothing_once_it_is_seen_and_whoever_watches_is_told(catalog: Catalog) -> None:
    made = catalog.create_token(1, ["web"])

    async def test(tokens: Tokens) -> None:
        told: list[Caller | None] = []
        tokens.watch(lambda: told.append(tokens.current(made.token.id)))
        await tokens.look()
        assert told == []
        catalog.revoke_token(made.token.id, 2)
        await tokens.look()
        assert told == [None]
        assert await tokens.find(made.secret) is None

    following(catalog, test)


def test_a_removed_project_is_taken_out_of_what_a_token_opens(catalog: Catalog) -> None:
    made = catalog.create_token(1, ["web", "api"])

    async def test(tokens: Tokens) -> None:
        told: list[frozenset[str] | None] = []
        tokens.watch(lambda: told.append((tokens.current(made.token.id) or Caller()).projects))
        remove(catalog, "web")
        await tokens.look()
        assert told == [frozenset({"api"})]

    following(catalog, test)


def test_an_end_needs_no_look_at_the_catalog(catalog: Catalog) -> None:
    wall = Wall()
    made = catalog.create_token(1, None, expires_ms=wall.ms + 1000)

    async def test(tokens: Tokens) -> None:
        wall.ms += 999
        assert tokens.holder(made.secret) is not None
        wall.ms += 1
        assert tokens.holder(made.secret) is None
        assert tokens.current(made.token.id) is None
        assert await tokens.find(made.secret) is None

    following(catalog, test, wall)


def test_whoever_watches_is_told_of_an_end_when_it_comes(catalog: Catalog) -> None:
    made = catalog.create_token(1, None, expires_ms=wall_ms() + 400)

    async def test(tokens: Tokens) -> None:
        late: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        assert made.token.expires_ms is not None
        tokens.watch(lambda: late.set_result(wall_ms() - (made.token.expires_ms or 0)))
        keeping = asyncio.create_task(tokens.keep())
        assert 0 <= await asyncio.wait_for(late, 20) < 1000
        keeping.cancel()

    following(catalog, test)


def test_while_the_catalog_fails_what_was_known_holds_and_it_is_said(catalog: Catalog) -> None:
    made = catalog.create_token(1, ["web"])
    fails = False

    def opened() -> Catalog:
        if fails:
            raise CatalogUnavailable("The database is gone.")
        return catalog

    async def test(tokens: Tokens) -> None:
        nonlocal fails
        fails = True
        catalog.add_project("/srv/more", 1)  # so that there is something to look at
        await tokens.look()
        assert tokens.problem == "The database is gone."
        assert tokens.holder(made.secret) is not None
        assert tokens.holder(HOME) is not None
        catalog.revoke_token(made.token.id, 2)
        await tokens.look()
        assert tokens.holder(made.secret) is not None
        fails = False
        await tokens.look()
        assert tokens.problem == ""
        assert tokens.holder(made.secret) is None

    following(opened, test)


@pytest.mark.parametrize("harm", ["missing", "garbage"])
def test_a_lost_or_broken_database_takes_no_token_away(catalog: Catalog, tmp_path: Path, harm: str) -> None:
    made = catalog.create_token(1, ["web"])
    path = tmp_path / "treewire.db"
    with catalog.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")  # the file alone is put back

    async def test(tokens: Tokens) -> None:
        path.rename(path.with_suffix(".away"))
        if harm == "garbage":
            path.write_bytes(b"garbage" * 1000)
        await tokens.look()
        assert "treewire.db" in tokens.problem
        assert tokens.holder(made.secret) is not None
        path.with_suffix(".away").replace(path)
        await tokens.look()
        assert tokens.problem == ""
        assert tokens.holder(made.secret) is not None

    following(catalog, test)


def test_the_last_use_is_kept_to_the_hour_and_written_once(catalog: Catalog) -> None:
    wall = Wall()
    made = catalog.create_token(1, None)
    hour = wall.ms // USED_MS * USED_MS

    async def test(tokens: Tokens) -> None:
        tokens.note_use("")
        tokens.note_use(made.token.id)
        await tokens.look()
        assert [one.used_ms for one in catalog.tokens()] == [hour]
        tokens.note_use(made.token.id)
        assert tokens._to_note == {}
        wall.ms += USED_MS
        tokens.note_use(made.token.id)
        await tokens.look()
        assert [one.used_ms for one in catalog.tokens()] == [hour + USED_MS]
        await asyncio.to_thread(catalog.note_token_use, {made.token.id: hour})
        assert [one.used_ms for one in catalog.tokens()] == [hour + USED_MS]

    following(catalog, test, wall)


# ── by command ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def treewire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, in a home with the projects web and api, while nothing runs."""
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    home.mkdir(mode=0o700)
    catalog = catalogs.open_url(f"sqlite:///{home}/treewire.db")
    catalog.add_project("/srv/web", 1, "The web")
    catalog.add_project("/srv/api", 1)
    catalog.close()
    return lambda *arguments: CliRunner().invoke(main, [*arguments, "--home", str(home)])


def test_a_token_is_shown_once_and_alone_on_standard_output(treewire: Callable[..., Result]) -> None:
    made = treewire("token", "create", "--project", "The web", "--name", "ci", "--ttl", "30d", "--read-only")
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    assert re.fullmatch(r"tw_[\w-]{43}", secret)
    assert "(ci) opens web, reads only, until " in made.stderr
    listed = treewire("token", "list", "--json").stdout + treewire("token", "list").stdout
    assert secret not in listed
    assert token_hash(secret) not in listed
    [one] = json.loads(treewire("token", "list", "--json").stdout)
    assert (one["name"], one["projects"], one["may_write"], one["state"]) == ("ci", ["web"], False, "active")
    assert one["expires_ms"] - one["created_ms"] == 30 * 86_400_000


def test_a_token_without_a_project_opens_all_and_json_has_all_there_is(treewire: Callable[..., Result]) -> None:
    made = json.loads(treewire("token", "create", "--json").stdout)
    assert made["projects"] is None
    assert made["expires_ms"] is None
    assert made["may_write"] is True
    assert made["token"].startswith("tw_")
    assert "all projects" in treewire("token", "list").stdout
    revoked = json.loads(treewire("token", "revoke", made["id"], "--json").stdout)
    assert revoked["state"] == "revoked"
    assert "revoked" in treewire("token", "list").stdout


def test_without_tokens_the_list_says_how_to_make_one(treewire: Callable[..., Result]) -> None:
    assert "treewire token create" in treewire("token", "list").stdout
    assert json.loads(treewire("token", "list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "-p", "wbe"), "did you mean 'web'?"),
        (("create", "--ttl", "soon"), "write a number and s, m, h, d or w"),
        (("create", "--ttl", "0d"), "write a number and s, m, h, d or w"),
        (("create", "--ttl", "9999w"), "leave --ttl out"),
        (("create", "--name", "two\nlines"), "characters that can be shown"),
        (("revoke", "nobody"), "There is no token 'nobody'; active ones: none."),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_to_do(
    treewire: Callable[..., Result], arguments: tuple[str, ...], said: str
) -> None:
    refused = treewire("token", *arguments)
    assert refused.exit_code != 0
    assert said in refused.stderr
    assert "tw_" not in refused.stdout
    assert json.loads(treewire("token", "list", "--json").stdout) == []
