"""A disk that forgets: what is below a folder after the power fails, in the worst of cases.

The model, which promises no more than POSIX and journals do:

- What a file holds is safe from the moment it was fsynced, as it was then. A file that was never
  fsynced may be empty, cut in half, zeros, or whole; one changed since its fsync as it was then, as
  it is now, or empty.
- The names in a folder are safe from the moment the folder was fsynced. Later changes (creating,
  renaming, linking, deleting) happen in their order: any first part of them may have reached the
  disk, in each folder apart. A file's fsync makes its name in no folder safe, nor a folder's fsync
  the folder's own name.
- A rename happens or does not, also from one folder to another.

The folder itself, and all that is in it when recording begins, are safe. The disk that works on
beside it is the real one, so nothing else is imitated: a `Recording` looks at it before every
fsync and after it, and before every other operation on a file or folder of which the interpreter
tells (`sys.addaudithook`).
"""

from __future__ import annotations

import os
import random
import resource
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

State = dict[str, bytes | None]
"""Relative path to content; None for a folder."""
_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
_recording: Recording | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _recording is not None and event in _EVENTS:
        _recording.hear(event, arguments)


@dataclass
class _Folder:
    """The names in a folder as they changed, each time with the number of the event."""

    history: list[tuple[int, dict[str, int]]]
    safe: int = 0
    """Changes up to this event are on the disk."""

    def at(self, event: int) -> dict[str, int]:
        return next(names for when, names in reversed(self.history) if when <= event)


@dataclass
class Recording:
    """What of `root` is safe, event by event. `at` is called with the number of every event."""

    root: Path
    at: Callable[[int], None] | None = None
    events: int = 0
    _folders: dict[int, _Folder] = field(default_factory=dict)
    _synced: dict[int, bytes] = field(default_factory=dict)
    _moves: list[tuple[int, int, int]] = field(default_factory=list)
    """Renames between folders: the event, and both."""
    _held: dict[int, int] = field(default_factory=dict)
    """Keeps every file open, so that none has the number of one before."""
    _lock: Any = field(default_factory=threading.RLock)
    _busy: bool = False

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        named = [_text(one) for one in arguments[:2]]
        inside = any(one.startswith(str(self.root)) for one in named)
        # Relative to an open folder, as shutil.rmtree deletes.
        relative = event in ("os.remove", "os.rmdir") and arguments[-1] not in (-1, None)
        if inside or relative:
            self._event(named if event == "os.rename" else None)

    def fsync(self, handle: int) -> None:
        self._event()
        with self._lock:
            about = os.fstat(handle)
            if stat.S_ISDIR(about.st_mode):
                self._look()
                if about.st_ino in self._folders:
                    self._folders[about.st_ino].safe = self.events
            else:
                with self._quiet():
                    self._synced[about.st_ino] = Path(f"/proc/self/fd/{handle}").read_bytes()
        self._event()

    def _event(self, renamed: list[str] | None = None) -> None:
        with self._lock:
            if self._busy:
                return
            with self._quiet():
                self.events += 1
                self._look()
                if renamed:
                    folders = [os.stat(os.path.dirname(path)).st_ino for path in renamed]
                    if folders[0] != folders[1]:
                        self._moves.append((self.events, *folders))
                if self.at is not None:
                    self.at(self.events)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """What this recording does itself is no event."""
        before, self._busy = self._busy, True
        yield
        self._busy = before

    def _look(self) -> None:
        """Note which folders changed since the last event."""
        folders = [self.root]
        while folders:
            path = folders.pop()
            try:
                entries = list(os.scandir(path))
                number = os.stat(path).st_ino
            except OSError:  # another thread just deleted it
                continue
            self._hold(number, path)
            names = {}
            for entry in entries:
                with suppress(OSError):
                    names[entry.name] = entry.inode()
                    self._hold(entry.inode(), Path(entry.path))
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
            known = self._folders.get(number)
            if known is None:
                first = {} if self.events else names
                known = self._folders[number] = _Folder([(0, first)])
            if known.history[-1][1] != names:
                known.history.append((self.events, names))

    def _hold(self, number: int, path: Path) -> None:
        if number not in self._held:
            handle = os.open(path, os.O_PATH)
            if os.fstat(handle).st_ino != number:  # renamed over in between
                os.close(handle)
                return
            self._held[number] = handle
            if not self.events and path.is_file():
                self._synced[number] = path.read_bytes()

    def begin(self) -> None:
        with self._quiet():
            self._look()

    def end(self) -> None:
        for handle in self._held.values():
            os.close(handle)

    def after_loss(self, draw: random.Random) -> State:
        """What might be left if the power failed now."""
        with self._lock, self._quiet():
            self._look()
            chosen = {number: self._choose(one, draw) for number, one in self._folders.items()}
            self._keep_moves_whole(chosen)
            found: State = {}
            self._gather(os.stat(self.root).st_ino, "", chosen, found, draw)
        return found

    def _choose(self, folder: _Folder, draw: random.Random) -> int:
        """How far the changes of a folder reached the disk."""
        how = draw.random()
        if how < 0.4:
            return folder.safe
        return self.events if how < 0.7 else draw.randint(folder.safe, self.events)

    def _keep_moves_whole(self, chosen: dict[int, int]) -> None:
        settled = False
        while not settled:
            settled = True
            for event, *both in self._moves:
                happened = [chosen[number] >= event for number in both]
                if any(happened) and not all(happened):
                    chosen[both[happened.index(False)]] = event
                    settled = False

    def _gather(
        self, number: int, prefix: str, chosen: dict[int, int], found: State, draw: random.Random
    ) -> None:
        for name, inside in self._folders[number].at(chosen[number]).items():
            if inside in self._folders:
                found[prefix + name] = None
                self._gather(inside, f"{prefix}{name}/", chosen, found, draw)
            else:
                found[prefix + name] = self._content(inside, draw)

    def _content(self, number: int, draw: random.Random) -> bytes:
        now = Path(f"/proc/self/fd/{self._held[number]}").read_bytes()
        safe = self._synced.get(number)
        if safe == now:
            return now
        if safe is not None:
            return draw.choice([safe, now, b""])
        return draw.choice([b"", b"", now[: len(now) // 2], bytes(len(now)), now])


def _text(path: Any) -> str:
    return os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""


@contextmanager
def recording(
    root: Path, at: Callable[[Recording, int], None] | None = None
) -> Iterator[Recording]:
    """Record what happens below `root` in this process; one at a time."""
    global _recording
    if not _listening:
        sys.addaudithook(_hear)
        _listening.append(True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    one = Recording(root.resolve())
    if at is not None:
        one.at = lambda event: at(one, event)
    one.begin()
    fsync = os.fsync
    os.fsync = lambda handle: one.fsync(handle if isinstance(handle, int) else handle.fileno())
    _recording = one
    try:
        yield one
    finally:
        _recording = None
        os.fsync = fsync
        one.end()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


_listening: list[bool] = []


def lay(state: State, root: Path) -> None:
    """Write a state to disk."""
    for name, content in state.items():
        path = root / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.write_bytes(content)
