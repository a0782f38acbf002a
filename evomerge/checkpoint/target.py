"""`Target`: a folder that appears under its name once it is complete, and replaces nothing but a checkpoint."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from evomerge.checkpoint.folder import strangers, unfinished
from evomerge.checkpoint.header import CONFIG
from evomerge.errors import CheckpointError

_MARK = "made-by-evomerge.txt"
_MARK_TEXT = "evomerge is writing a model here. If it was killed, the next run with the same target cleans up.\n"


class Target:
    """A folder that is filled inside a temporary one beside it, which has its own name and a file that marks it.

    That one holds ``new``, which gets the target's name at the end, and ``replaced``, what the target was until then:
    a run that is killed leaves the old folder or the new one, or the next run restores the old one.

    Args:
        folder: the target.
        overwrite: whether an existing folder is replaced, if a checkpoint is all that it holds.
        needed: files and folders that the target must not be or contain; the current and the home folder are always
            among them.

    Attributes:
        folder: the target, links followed: the rename must replace what a link names, on its own file system.
        new: the folder to fill, between `begin` and `finish`.

    Raises:
        CheckpointError: there can be no such folder.
    """

    def __init__(self, folder: Path, *, overwrite: bool, needed: Iterable[Path]) -> None:
        try:
            self.folder = Path(os.path.expanduser(folder)).resolve()
            self._needed = {path.resolve() for path in (Path.cwd(), Path(os.path.expanduser("~")), *needed)}
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13.
            raise CheckpointError(f"{folder}: cannot be written: {error}") from error
        if os.path.ismount(self.folder):
            raise CheckpointError(f"{self.folder}: is the root of a file system; name a folder in it")
        self._overwrite = overwrite
        self._work = unfinished(self.folder)
        self.new, self._replaced, self._mark = (self._work / name for name in ("new", "replaced", _MARK))
        self._handle: int | None = None
        self._begun = False

    def check(self) -> None:
        """Checks that the target is free, empty, or a checkpoint to replace and nothing else.

        Raises:
            CheckpointError: it is not.
            OSError: it cannot be read.
        """
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: is a file; name a folder to write to")
        for path in self._needed:
            # Compared by the files themselves: a file system may know a folder under several names.
            if any(one.exists() and one.samefile(self.folder) for one in (path, *path.parents)):
                raise CheckpointError(
                    f"{self.folder}: {'is' if path == self.folder else f'holds {path},'} a model or the recipe of"
                    " this merge, the current folder or your home folder; name another folder"
                )
        if not any(self.folder.iterdir()):
            return
        if not self._overwrite:
            raise CheckpointError(f"{self.folder}: is not empty; name another folder, or allow overwriting it")
        others = strangers(self.folder)
        if others:
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            raise CheckpointError(
                f"{self.folder}: is not overwritten: it holds more than a model: {', '.join(others[:3])}{more};"
                " move that elsewhere, or name another folder"
            )
        if not (self.folder / CONFIG).is_file():
            raise CheckpointError(f"{self.folder}: is not overwritten: it has no {CONFIG}, so it is not a model")

    def begin(self) -> None:
        """Cleans up after a killed run and makes the folder to fill.

        Raises:
            CheckpointError: another process is writing there, or see `check`.
            OSError: the disk refuses.
        """
        if self._work.is_dir():
            self._handle = _locked(self._work)  # An error where its writer lives.
            try:
                if self._replaced.exists() and self.new.exists():  # It was killed between the two renames.
                    self._replaced.rename(self.folder)
                self._remove()
            finally:
                self._close()
        self.check()
        self._work.mkdir(parents=True)
        self._handle = _locked(self._work)
        self._begun = True
        self._mark.write_text(_MARK_TEXT, encoding="utf-8")
        self.new.mkdir()

    def finish(self) -> None:
        """Renames the filled folder to the target; what was there before is removed only then.

        Raises:
            CheckpointError: the target was filled meanwhile.
            OSError: the disk refuses.
        """
        sync(self.new)
        self.check()
        if self.folder.exists():
            self.folder.rename(self._replaced)
        try:
            self.new.rename(self.folder)
        except OSError:
            if self._replaced.exists():
                self._replaced.rename(self.folder)
            raise
        sync(self.folder.parent)
        self.discard()

    def discard(self) -> None:
        """Removes what was written, unless it was renamed to the target."""
        if self._begun:
            self._begun = False
            with suppress(OSError):
                self._remove()
        self._close()

    def stale_bytes(self) -> int:
        """Returns the bytes on the disk that `begin` will free: what a killed run left there."""
        files = (path for path in self.new.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files)

    def _remove(self) -> None:
        """Removes only what this program made there: nothing without its mark, nothing else."""
        if self._mark.is_file():
            for folder in (self.new, self._replaced):
                if folder.exists():
                    shutil.rmtree(folder)
            self._mark.unlink()
        self._work.rmdir()

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a small file whole or not at all: beside it, onto the disk, then one rename.

    Raises:
        OSError: the disk refuses; the file is as it was.
    """
    fresh = unfinished(path)
    try:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(fresh)
        fresh.replace(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise


def _locked(folder: Path) -> int | None:
    """A handle that locks a folder until it is closed or its process dies; None where the file system has no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise CheckpointError(
            f"{folder}: another process is writing there; wait for it, or write to another folder"
        ) from None
    except OSError:  # A network file system without locks.
        os.close(handle)
        return None
    return handle
