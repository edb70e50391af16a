"""``.gitignore`` files: which paths of a folder its owner keeps out.

The patterns of gitignore(5): comments, ``!``, a slash at the end for folders only, a slash
elsewhere for a place below the file's own folder, ``*``, ``?``, ``[...]`` and ``**``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_MOST_PATTERNS = 2000
_LARGEST = 1024 * 1024  # bytes


@dataclass(frozen=True)
class _Rule:
    pattern: re.Pattern[str]
    keeps: bool
    folders_only: bool


@dataclass(frozen=True)
class Ignored:
    """The rules of one folder's ``.gitignore``."""

    folder: Path
    rules: tuple[_Rule, ...]

    @classmethod
    def of(cls, folder: Path) -> Ignored | None:
        """None where the folder has no such file, or none that can be read."""
        try:
            with (folder / ".gitignore").open("rb") as file:
                text = file.read(_LARGEST).decode("utf-8", "replace")
        except OSError:
            return None
        rules = [_rule(line) for line in text.splitlines()[:_MOST_PATTERNS]]
        return cls(folder, tuple(rule for rule in rules if rule is not None))

    def verdict(self, path: Path, *, is_folder: bool) -> bool | None:
        """True: ignored, False: kept after all, None: this file does not say."""
        name = path.relative_to(self.folder).as_posix()
        for rule in reversed(self.rules):
            if (is_folder or not rule.folders_only) and rule.pattern.fullmatch(name):
                return not rule.keeps
        return None


def is_ignored(files: list[Ignored], path: Path, *, is_folder: bool) -> bool:
    """By the rules of all folders above it, the innermost first."""
    for file in reversed(files):
        verdict = file.verdict(path, is_folder=is_folder)
        if verdict is not None:
            return verdict
    return False


def _rule(line: str) -> _Rule | None:
    line = line.rstrip("\r\n")
    if not line.endswith("\\ "):
        line = line.rstrip(" ")
    if not line or line.startswith("#"):
        return None
    keeps = line.startswith("!")
    line = line[1:] if keeps or line.startswith(("\\#", "\\!")) else line
    folders_only = line.endswith("/")
    line = line.rstrip("/")
    anchored = "/" in line
    try:
        pattern = re.compile(("" if anchored else "(?:.*/)?") + _expression(line.lstrip("/")))
    except re.error:
        return None
    return _Rule(pattern, keeps, folders_only) if line else None


def _expression(pattern: str) -> str:
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        closing = pattern.find("]", at + 2) if sign == "[" else -1
        if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
            parts.append("(?:.*/)?")
            at += 3
        elif pattern.startswith("**", at) and at + 2 == len(pattern):
            parts.append(".*")
            at += 2
        elif sign in "*?":
            if not (sign == "*" and parts and parts[-1] == "[^/]*"):  # "**" inside is "*"
                parts.append("[^/]*" if sign == "*" else "[^/]")
            at += 1
        elif closing > 0:
            inside = pattern[at + 1 : closing].replace("\\", "\\\\").replace("[", "\\[")
            parts.append(f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]")
            at = closing + 1
        else:
            at += sign == "\\" and at + 1 < len(pattern)
            parts.append(re.escape(pattern[at]))
            at += 1
    return "".join(parts)
