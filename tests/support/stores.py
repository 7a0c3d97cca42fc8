"""A store that fails on request: a seam for tests of code that uses a store."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from bptt.durability import Checkpoint, CheckpointInfo, ModelCopy, Record, Store
from bptt.errors import ServiceError, StorageFailed


def no_space() -> ServiceError:
    """The error of a full disk."""
    return StorageFailed("journal.sqlite3 could not be written: No space left on device")


class FailingStore:
    """A store whose n-th call of a method raises, and a number of calls after it.

    Args:
        store: does the work of the calls that do not fail.
        at: name of the method.
        nth: the first call that fails, counted from 1.
        times: how many calls fail from there on; None: all of them.
        error: makes the exception.
        after: raise after the method has done its work, as a disk may that reports an error
            although it kept the data.

    Attributes:
        calls: how often each method was called; set `failing` to False to have it work again.
    """

    def __init__(
        self,
        store: Store,
        *,
        at: str,
        nth: int = 1,
        times: int | None = 1,
        error: Callable[[], Exception] = no_space,
        after: bool = False,
    ) -> None:
        self._store = store
        self._at = at
        self._nth = nth
        self._times = times
        self._error = error
        self._after = after
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.failing = True

    def _counted(self, method: str, work: Callable[[], None]) -> None:
        with self._lock:
            self.calls[method] += 1
            call = self.calls[method]
        last = float("inf") if self._times is None else self._nth + self._times - 1
        fails = self.failing and method == self._at and self._nth <= call <= last
        if fails and not self._after:
            raise self._error()
        work()
        if fails:
            raise self._error()

    def open(self, epoch: int | None = None) -> int:
        opened: list[int] = []
        self._counted("open", lambda: opened.append(self._store.open(epoch)))
        return opened[0]

    def close(self) -> None:
        self._counted("close", self._store.close)

    def models(self) -> list[str]:
        found: list[str] = []
        self._counted("models", lambda: found.extend(self._store.models()))
        return found

    def append(self, model_id: str, records: Sequence[Record]) -> None:
        self._counted("append", lambda: self._store.append(model_id, records))

    def tail(self, model_id: str, after: int) -> Iterator[Record]:
        found: list[Iterator[Record]] = []
        self._counted("tail", lambda: found.append(self._store.tail(model_id, after)))
        return found[0]

    def last(self, model_id: str) -> int:
        found: list[int] = []
        self._counted("last", lambda: found.append(self._store.last(model_id)))
        return found[0]

    def save(self, checkpoint: Checkpoint) -> None:
        self._counted("save", lambda: self._store.save(checkpoint))

    def checkpoints(self, model_id: str) -> list[CheckpointInfo]:
        found: list[CheckpointInfo] = []
        self._counted("checkpoints", lambda: found.extend(self._store.checkpoints(model_id)))
        return found

    def load(self, model_id: str, lsn: int) -> Checkpoint:
        found: list[Checkpoint] = []
        self._counted("load", lambda: found.append(self._store.load(model_id, lsn)))
        return found[0]

    def delete(self, model_id: str) -> None:
        self._counted("delete", lambda: self._store.delete(model_id))

    # What the tools use does not fail here.

    def base(self, model_id: str) -> int:
        return self._store.base(model_id)

    def records(self, model_id: str, after: int) -> Iterator[Record]:
        return self._store.records(model_id, after)

    def salvage(self, model_id: str) -> Iterator[tuple[int, Record | str]]:
        return self._store.salvage(model_id)

    def committed(self, model_id: str) -> int | None:
        return self._store.committed(model_id)

    def problems(self, model_id: str) -> list[str]:
        return self._store.problems(model_id)

    def epoch(self) -> int:
        return self._store.epoch()

    def copying(self, model_id: str) -> AbstractContextManager[ModelCopy | None]:
        return self._store.copying(model_id)

    def offline(self) -> AbstractContextManager[None]:
        return self._store.offline()

    def repair(
        self, model_id: str, damaged: Sequence[int], keep: tuple[int, int] | None
    ) -> list[str]:
        return self._store.repair(model_id, damaged, keep)

    def receiving(self, epoch: int) -> AbstractContextManager[Callable[[ModelCopy], int]]:
        return self._store.receiving(epoch)
