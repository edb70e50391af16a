"""Folders: what is read, what is passed over, and that each is named with its reason."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from selm_edge.memory.documents.folders import Found, find


def tree(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def told(root: Path, found: list[Found]) -> dict[str, str | None]:
    return {one.path.relative_to(root).as_posix(): one.reason for one in found}


def test_what_is_passed_over(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    tree(
        root, "b.txt", "a/deep/er/c.md", ".hidden", ".git/config", "node_modules/x/y.js",
        "pkg/__pycache__/a.pyc", "env2/pyvenv.cfg", "env2/lib/a.py", "app.min.js",
        "package-lock.json", "a/kept.log", "a/gone.tmp",
    )  # fmt: skip
    tree(outside, "secret.txt")
    (root / "a/.gitignore").write_text("*.tmp\n")
    (root / "out.txt").symlink_to(outside / "secret.txt")
    (root / "outfolder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "again.txt").symlink_to(root / "b.txt")
    (root / "nowhere.txt").symlink_to(root / "none")
    (root / "e\x1b[31m.txt").write_text("x")
    os.mkfifo(root / "pipe")
    found = told(root, list(find([root])))
    assert {name for name, reason in found.items() if reason is None} == {
        "b.txt", "a/deep/er/c.md", "a/kept.log",
    }  # fmt: skip
    reasons = {name: reason for name, reason in found.items() if reason}
    assert reasons.pop("nowhere.txt").startswith("a link that leads nowhere")
    assert reasons == {
        ".hidden": "a hidden file",
        ".git": "a hidden folder",
        "a/.gitignore": "a hidden file",
        "node_modules": "a folder that programs fill",
        "pkg/__pycache__": "a folder that programs fill",
        "env2": "a Python environment",
        "app.min.js": "made by a program",
        "package-lock.json": "made by a program",
        "a/gone.tmp": "named in .gitignore",
        "out.txt": "a link that leads out of the folder",
        "outfolder": "a link that leads out of the folder",
        "loop": "a link to a folder that is read itself",
        "pipe": "not a file with content (a device or a pipe)",
        "e\x1b[31m.txt": "its name holds characters that cannot be shown: give it another name",
    }


def test_a_file_that_is_named_is_taken(tmp_path: Path) -> None:
    tree(tmp_path, ".notes", "build/a.txt")
    (tmp_path / "link").symlink_to(tmp_path / "build/a.txt")
    found = list(find([tmp_path / ".notes", tmp_path / "link", tmp_path / "build/a.txt"]))
    assert told(tmp_path, found) == {".notes": None, "build/a.txt": None}
    [missing] = find([tmp_path / "none"])
    assert missing.reason == "there is no such file"


def test_folders_that_may_not_be_read(tmp_path: Path) -> None:
    tree(tmp_path, "a/x.txt", "b.txt")
    (tmp_path / "a").chmod(0)
    try:
        if os.access(tmp_path / "a", os.R_OK):
            pytest.skip("this user may read everything")
        assert told(tmp_path, list(find([tmp_path])))["a"] == "it may not be read by you"
    finally:
        (tmp_path / "a").chmod(0o700)


def test_very_deep_folders(tmp_path: Path) -> None:
    before = os.getcwd()  # noqa: PTH109 - given back as it was
    os.chdir(tmp_path)
    try:
        for _ in range(600):
            Path("d").mkdir()
            os.chdir("d")
        Path("end.txt").write_text("x")
    finally:
        os.chdir(before)
    found = list(find([tmp_path]))
    assert [one.path.name for one in found] == ["end.txt"]


PATTERNS = """\
# a comment

*.log
!important.log
/top.txt
docs/*.pdf
build/
**/cache
a/**/z.txt
[ab]?.txt
with\\ space.txt\\
trailing.txt   
\\#hash
*.[oa]
deep/**
!deep/kept.txt
x*y*z
"""

NAMES = [
    "a.log", "important.log", "sub/b.log", "top.txt", "sub/top.txt", "docs/x.pdf",
    "docs/sub/x.pdf", "build/x", "sub/build/y", "cache/c", "p/q/cache/c", "a/z.txt", "a/b/z.txt",
    "a/b/c/z.txt", "a1.txt", "c1.txt", "trailing.txt", "#hash", "lib.o", "lib.so", "deep/x",
    "deep/kept.txt", "xaybz", "xayb", "plain.txt",
]  # fmt: skip


def test_gitignore_as_git_reads_it(tmp_path: Path) -> None:
    if subprocess.run(["git", "init", "-q", tmp_path], check=False).returncode:
        pytest.skip("git is not here")
    tree(tmp_path, *NAMES)
    (tmp_path / ".gitignore").write_text(PATTERNS)
    (tmp_path / "sub/.gitignore").write_text("!b.log\nbuild\n")
    listed = subprocess.run(
        ["git", "-C", tmp_path, "ls-files", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    expected = {name for name in listed if name and not name.endswith(".gitignore")}
    found = {name for name, reason in told(tmp_path, list(find([tmp_path]))).items() if not reason}
    assert found == expected
