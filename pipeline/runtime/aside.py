"""Runs what may hang beside the loop: a file system that no longer answers costs one thread, and nothing else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Stuck(Exception):
    """There was no answer in time. ``thread`` goes on waiting for it."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__("it does not answer")
        self.thread = thread


async def aside(patience_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns or raises, called in a thread of its own. Raises `Stuck` if that takes too long.

    The loop's own pool of threads would not do: it is small, and the process could not end before all of it has.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(say: Callable[[], None]) -> None:
        try:
            loop.call_soon_threadsafe(lambda: None if done.done() else say())
        except RuntimeError:  # the loop is gone, and with it whoever would care
            pass

    def run() -> None:
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            bad_luck = error
            tell(lambda: done.set_exception(bad_luck))
        else:
            tell(lambda: done.set_result(result))

    thread = threading.Thread(target=run, name=getattr(function, "__name__", "aside"), daemon=True)
    thread.start()
    await asyncio.wait((done,), timeout=patience_s)
    if not done.done():
        done.cancel()
        raise Stuck(thread)
    return done.result()
