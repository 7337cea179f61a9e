"""A mapping file says what the tables and columns of any database are: TOML, checked, then used to read rows. Pure."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, get_args, get_type_hints

import msgspec

from pipeline.bridges.event import MAX_PORT, MAX_TEXT
from pipeline.bridges.foreign import Fact, Home, Native, Picture, Row, Rows, flag, number, path, text, url, when
from pipeline.domain.model import KINDS, SESSION_PREFIX

PROJECT: Final = "project"
WORKSPACE: Final = "workspace"
REPORTED: Final = ("pr", "ci", "ratchet", "terminal", "run", "session")
SECTIONS: Final = (PROJECT, WORKSPACE, *REPORTED)
# The group whose fields a section may name, besides the columns that tie tables together.
_KIND: Final = {WORKSPACE: "life", **{group: group for group in REPORTED}}
_TIES: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    PROJECT: (("table", "id", "path"), ()),
    WORKSPACE: (("table", "id", "project"), ("path", "at")),
    **dict.fromkeys(REPORTED, (("table", "workspace"), ("at", "seen"))),
    "session": (("table", "workspace", "id"), ("at", "seen")),
}
# What a group may say besides its public fields: they place the value.
_PLACING: Final = {"ci": ("pr",)}
_NAME: Final = re.compile(r"[^\x00-\x1f\"]{1,128}")


class MappingError(ValueError):
    """A mapping that cannot be used. The message names line and key, and says what to write."""


class Field(NamedTuple):
    """Where a field comes from: a column, its words translated by `values`, with `otherwise` for any other word."""

    column: str
    convert: Callable[[object], Any]
    values: Mapping[str, Any] | None = None
    otherwise: Any = None

    def of(self, row: Row) -> Any:
        value = row[self.column]
        found = self.convert(value) if self.values is None else self.values.get(word(value))
        return self.otherwise if found is None else found


class Section(NamedTuple):
    """One table of the mapping: the columns that tie it to others, and those that are fields."""

    table: str
    ties: Mapping[str, str]
    fields: Mapping[str, Field]

    def tie(self, name: str, row: Row) -> Any:
        return row[self.ties[name]] if name in self.ties else None


class Mapped(NamedTuple):
    """A mapping, ready for use. `database`: the URL of SQLite or PostgreSQL."""

    database: str
    sections: Mapping[str, Section]
    native: Native


def parse(source: str) -> Mapped:
    """Read a mapping file. Raises `MappingError` at the first thing in it that is wrong."""
    try:
        tree = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise MappingError(f"the mapping is not valid TOML: {error}") from None
    return _Parser(source, tree).parsed()


class _Parser:
    def __init__(self, source: str, tree: dict[str, Any]) -> None:
        self._source = source
        self._tree = tree

    def parsed(self) -> Mapped:
        for key in self._tree:
            if key != "database" and key not in SECTIONS:
                raise self._wrong(key, f"is not known; there are database, {', '.join(SECTIONS)}")
        database = self._tree.get("database")
        if not isinstance(database, str) or not database.startswith(
            ("sqlite:////", "postgresql://", "postgresql+psycopg://")
        ):
            raise self._wrong("database", 'has to be "sqlite:////absolute/path" or "postgresql://user@host/name"')
        for needed in (PROJECT, WORKSPACE):
            if needed not in self._tree:
                raise self._wrong(needed, f"is missing: write a section [{needed}]")
        sections: dict[str, Section] = {name: self._section(name) for name in SECTIONS if name in self._tree}
        return Mapped(database, sections, native_of(sections))

    def _section(self, name: str) -> Section:
        given = self._tree[name]
        if not isinstance(given, dict):
            raise self._wrong(name, f"has to be a section: [{name}]")
        home = self._tree[WORKSPACE]
        if name in REPORTED and name != "session" and "table" not in given and isinstance(home, dict):
            # Columns of the workspace's own table need not say so.
            given = {"table": home.get("table"), "workspace": home.get("id"), **given}
        musts, mays = _TIES[name]
        for needed in musts:
            if needed not in given:
                raise self._wrong(f"{name}.{needed}", "is missing: it names " + _WHAT[needed])
        ties = {key: self._column(f"{name}.{key}", given[key]) for key in (*musts, *mays) if key in given}
        table = ties.pop("table")
        known = self._fields_of(name)
        fields = {}
        for key, value in given.items():
            if key in ties or key == "table":
                continue
            if key not in known:
                raise self._wrong(f"{name}.{key}", f"is no field here; there are {', '.join((*musts, *mays, *known))}")
            fields[key] = self._field(name, key, value)
        return Section(table, ties, fields)

    def _fields_of(self, section: str) -> tuple[str, ...]:
        if section == PROJECT:
            return ()
        kind = _KIND[section]
        return (*KINDS[kind].__struct_fields__, *_PLACING.get(kind, ()))

    def _field(self, section: str, name: str, given: object) -> Field:
        where = f"{section}.{name}"
        convert = _converter(_KIND[section], name)
        if isinstance(given, str):
            return Field(self._column(where, given), convert)
        if not isinstance(given, dict) or "column" not in given:
            raise self._wrong(where, 'has to be a column, or { column = "…", values = { theirs = "ours" } }')
        for key in given:
            if key not in ("column", "values", "otherwise"):
                raise self._wrong(f"{where}.{key}", "is not known; there are column, values and otherwise")
        values = given.get("values")
        if values is not None and not isinstance(values, dict):
            raise self._wrong(f"{where}.values", 'has to be a table: { theirs = "ours" }')
        for key, value in (values or {}).items():
            self._check_value(section, name, f"{where}.values.{key}", value)
        otherwise = given.get("otherwise")
        if otherwise is not None:
            self._check_value(section, name, f"{where}.otherwise", otherwise)
        return Field(self._column(f"{where}.column", given["column"]), convert, values, otherwise)

    def _column(self, where: str, given: object) -> str:
        if not isinstance(given, str) or not _NAME.fullmatch(given):
            raise self._wrong(where, "has to be the name of " + _WHAT.get(where.rpartition(".")[2], "a column"))
        return given

    def _check_value(self, section: str, name: str, where: str, value: object) -> None:
        kind = _KIND[section]
        if name in _PLACING.get(kind, ()):
            return
        try:
            msgspec.convert({name: value}, KINDS[kind])
        except msgspec.ValidationError as error:
            words = _words(kind, name)
            hint = f"it is one of {', '.join(words)}" if words else str(error).split(" - at ")[0].lower()
            raise self._wrong(where, f"cannot be {value!r}; {hint}") from None

    def _wrong(self, key: str, problem: str) -> MappingError:
        line = line_of(self._source, key)
        return MappingError(f"line {line}: {key} {problem}" if line else f"{key} {problem}")


_WHAT: Final = {
    "table": "a table",
    "id": "the column with the row's id",
    "project": "the column with the project's id",
    "workspace": "the column with the workspace's id",
    "path": "the column with a folder",
    "at": "the column with the time of the last change",
    "seen": "the column with the time at which the tool itself looked",
}


def line_of(source: str, key: str) -> int:
    """The line on which a key, or the nearest one around it, is written; 0 if none is."""
    wanted, best, depth = key.split("."), 0, 0
    section: list[str] = []
    for number_, line in enumerate(source.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
            section = [part.strip(" \"'") for part in header[1].split(".")]
            here = section
        elif assigned := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            here = [*section, *(part.strip("\"'") for part in assigned[1].split("."))]
        else:
            continue
        if len(here) > depth and here == wanted[: len(here)]:
            best, depth = number_, len(here)
    return best


def _converter(kind: str, name: str) -> Callable[[object], Any]:
    if name == "url":
        return url
    if name == "port":
        return lambda value: number(value, MAX_PORT)
    if name == "last_output":
        return when
    if name in _PLACING.get(kind, ()):
        return number
    words = _words(kind, name)
    if words:
        return lambda value: word(value).lower() if word(value).lower() in words else None
    hint = get_type_hints(KINDS[kind])[name]
    return flag if bool in get_args(hint) else number if int in get_args(hint) else text


def _words(kind: str, name: str) -> list[str]:
    """The words that a field may say, if they are counted."""
    parts: tuple[Any, ...] = get_args(get_type_hints(KINDS[kind])[name])
    return [value for part in parts for value in get_args(part)]


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def native_of(sections: Mapping[str, Section]) -> Native:
    """How to read a database by these sections."""
    needs: dict[str, tuple[str, ...]] = {}
    for section in sections.values():
        columns = (*section.ties.values(), *(field.column for field in section.fields.values()))
        needs[section.table] = tuple(dict.fromkeys((*needs.get(section.table, ()), *columns)))
    return Native(needs, {}, lambda rows: _picture(sections, rows))


def word(value: object) -> str:
    """A value as the word that a mapping has for it, and that keys are compared by."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)[:MAX_TEXT]


def _picture(sections: Mapping[str, Section], rows: Rows) -> Picture:
    problems: list[str] = []
    projects = _projects(sections[PROJECT], rows)
    section = sections[WORKSPACE]
    homes: dict[str, Home] = {}
    for row in rows[section.table]:
        name, project = word(section.tie("id", row)), word(section.tie("project", row))
        if name and project in projects:
            life = _fact(section, row)
            life.fields.setdefault("phase", "ready")
            homes[name] = Home(name, project, path(section.tie("path", row)), {"life": life})
        else:
            problems.append(f"a row of {section.table} has no id, or one of no project: {text(name)}, {text(project)}")
    for group in REPORTED:
        if group in sections:
            _add(group, sections[group], rows, homes)
    return Picture(projects, homes, problems)


def _add(group: str, section: Section, rows: Rows, homes: Mapping[str, Home]) -> None:
    for row in rows[section.table]:
        home = homes.get(word(section.tie("workspace", row)))
        fact = _fact(section, row)
        if home is None or all(value is None for value in fact.fields.values()):
            continue
        if group == "session":
            if name := word(section.tie("id", row)):
                home.facts[SESSION_PREFIX + name] = fact
        else:
            home.facts[group] = fact


def _projects(section: Section, rows: Rows) -> dict[str, str]:
    found = {word(section.tie("id", row)): path(section.tie("path", row)) for row in rows[section.table]}
    return {name: where for name, where in found.items() if name and where}


def _fact(section: Section, row: Row) -> Fact:
    fields = {name: field.of(row) for name, field in section.fields.items()}
    return Fact(fields, when(section.tie("at", row)), when(section.tie("seen", row)))
