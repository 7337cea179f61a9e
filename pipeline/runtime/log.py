"""One line per fact that somebody needs at 3 a.m.: key=value on a terminal, JSON elsewhere, always to stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

import msgspec

# structlog imports rich and greenlet wherever they happen to be installed, for what is not used here: megabytes in
# every process. A None in sys.modules makes such an import fail, which structlog expects.
_blocked = [name for name in ("rich", "greenlet") if name not in sys.modules]
sys.modules.update(dict.fromkeys(_blocked))  # type: ignore[arg-type]
import structlog  # noqa: E402

for _name in _blocked:
    del sys.modules[_name]

from structlog.typing import EventDict, FilteringBoundLogger  # noqa: E402

__all__ = ["FilteringBoundLogger", "setup"]

_FIRST = ["timestamp", "level", "process", "event"]


def setup(name: str, level: str = "info", style: str = "auto", stream: TextIO | None = None) -> FilteringBoundLogger:
    """The logger of the process ``name``. ``style``: auto (by terminal), json or text.

    The standard library's loggers end in the same place, from warnings up.
    """
    stream = stream or sys.stderr
    text = style == "text" or (style == "auto" and stream.isatty())
    number = structlog.processors.NAME_TO_LEVEL[level]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _as_text if text else _as_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Lossy(stream))),
        cache_logger_on_first_use=True,
    )
    log: FilteringBoundLogger = structlog.get_logger(process=name)
    logging.basicConfig(handlers=[_Bridge(log)], level=max(number, logging.WARNING), force=True)
    return log


class _Lossy:
    """What cannot be written is lost: a full disk or a reader that is gone costs lines, and nobody's work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


class _Bridge(logging.Handler):
    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def _as_json(_: Any, __: str, event: EventDict) -> str:
    ordered = {key: event.pop(key) for key in _FIRST if key in event}
    return msgspec.json.encode({**ordered, **event}, enc_hook=repr).decode()


def _as_text(_: Any, __: str, event: EventDict) -> str:
    story = event.pop("exception", None)
    ordered = {key: event.pop(key) for key in _FIRST if key in event}
    line = " ".join(f"{key}={_quoted(value)}" for key, value in {**ordered, **event}.items())
    return f"{line}\n{story}" if story else line


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    plain = text and text.isprintable() and not any(char in text for char in ' "=')
    return text if plain else msgspec.json.encode(text).decode()
