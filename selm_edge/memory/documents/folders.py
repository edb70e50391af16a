"""Which files of a folder are documents; every one that is not is named with its reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from selm_edge.memory.documents.blocks import words
from selm_edge.memory.documents.gitignore import Ignored, is_ignored
from selm_edge.memory.documents.hygiene import strange_name

BUILD_FOLDERS = words(
    "node_modules __pycache__ bower_components site-packages venv env build dist target"
    " cmake-build-debug cmake-build-release out obj coverage htmlcov Pods DerivedData"
)
"""Folders that programs fill: nothing in them was written to be read."""
_MADE = ("-lock.json", ".lock", ".min.js", ".min.css", ".map", ".pyc")
_MOST_FILES = 1_000_000


@dataclass(frozen=True)
class Found:
    """A file to read, or with a ``reason`` a file or folder that is not."""

    path: Path
    size: int = 0
    modified: int = 0  # milliseconds since 1970
    reason: str | None = None


def find(paths: Sequence[Path]) -> Iterator[Found]:
    """The files at ``paths`` and in the folders there, in order of their names, each once.

    A file that is named itself is taken, hidden or not. In folders, hidden files, build folders
    and what a ``.gitignore`` names are passed over, and links that lead elsewhere.
    """
    seen: set[Path] = set()
    for path in paths:
        try:
            root = path.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            yield Found(path, reason=_why(error))
            continue
        for entry in _walk(root) if root.is_dir() else [_file(root)]:
            if entry.path not in seen:
                seen.add(entry.path)
                yield entry
            if len(seen) > _MOST_FILES:
                yield Found(root, reason=f"more than {_MOST_FILES:,} files: the rest is not read")
                return


def _walk(root: Path) -> Iterator[Found]:
    # A list instead of recursion: folders may be nested deeper than Python's stack.
    waiting: list[tuple[Path, list[Ignored]]] = [(root, [])]
    while waiting:
        folder, above = waiting.pop()
        own = Ignored.of(folder)
        rules = [*above, own] if own else above
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            yield Found(folder, reason=_why(error))
            continue
        deeper: list[tuple[Path, list[Ignored]]] = []
        for entry in entries:
            path = folder / entry.name
            reason = _passed_over(entry, path, rules)
            if reason:
                yield Found(path, reason=reason)
            elif entry.is_symlink():
                yield _linked(path, root)
            elif entry.is_dir(follow_symlinks=False):
                deeper.append((path, rules))
            else:
                yield _file(path)
        waiting += reversed(deeper)


def _passed_over(entry: os.DirEntry[str], path: Path, rules: list[Ignored]) -> str | None:
    is_folder = entry.is_dir(follow_symlinks=False)
    tests = (
        (strange_name(entry.name), _STRANGE),
        (entry.name.startswith("."), "a hidden folder" if is_folder else "a hidden file"),
        (is_folder and entry.name in BUILD_FOLDERS, "a folder that programs fill"),
        (is_folder and (path / "pyvenv.cfg").exists(), "a Python environment"),
        (not is_folder and entry.name.endswith(_MADE), "made by a program"),
        (is_ignored(rules, path, is_folder=is_folder), "named in .gitignore"),
    )
    return next((reason for holds, reason in tests if holds), None)


def _linked(path: Path, root: Path) -> Found:
    """A link is followed to files below the folder only."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        return Found(path, reason=f"a link that leads nowhere ({_why(error)})")
    if not target.is_relative_to(root):
        return Found(path, reason="a link that leads out of the folder")
    if target.is_dir():
        return Found(path, reason="a link to a folder that is read itself")
    return _file(target)


def _file(path: Path) -> Found:
    if strange_name(path.name):
        return Found(path, reason=_STRANGE)
    try:
        state = path.stat()
    except (OSError, ValueError) as error:
        return Found(path, reason=_why(error))
    if not stat.S_ISREG(state.st_mode):
        return Found(path, reason="not a file with content (a device or a pipe)")
    return Found(path, state.st_size, state.st_mtime_ns // 1_000_000)


_STRANGE = "its name holds characters that cannot be shown: give it another name"


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "it may not be read by you"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
