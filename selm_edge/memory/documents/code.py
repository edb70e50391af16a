"""Source code: top-level definitions as blocks of lines, whatever the language.

A definition begins with a line that is not indented and follows a blank line. That holds for
Python, C and its kin, shell, SQL and configuration alike, and asks for no parser per language.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from selm_edge.memory.documents.blocks import Block
from selm_edge.memory.documents.text import block

LANGUAGES = {
    ".adb": "ada", ".asm": "assembly", ".awk": "awk", ".bash": "shell", ".bat": "batch", ".c": "c",
    ".cc": "c++", ".cfg": "ini", ".clj": "clojure", ".cmake": "cmake", ".conf": "configuration",
    ".cpp": "c++", ".cs": "c#", ".css": "css", ".cu": "cuda", ".cxx": "c++", ".d": "d",
    ".dart": "dart", ".el": "lisp", ".erl": "erlang", ".ex": "elixir", ".exs": "elixir",
    ".f90": "fortran", ".fish": "shell", ".fs": "f#", ".go": "go", ".gradle": "groovy",
    ".graphql": "graphql", ".groovy": "groovy", ".h": "c", ".hh": "c++", ".hpp": "c++",
    ".hs": "haskell", ".hxx": "c++", ".ini": "ini", ".java": "java", ".jl": "julia",
    ".js": "javascript", ".json": "json", ".jsonl": "json", ".jsx": "javascript", ".kt": "kotlin",
    ".kts": "kotlin", ".less": "css", ".lisp": "lisp", ".lua": "lua", ".m": "objective-c",
    ".mjs": "javascript", ".ml": "ocaml", ".mm": "objective-c", ".nim": "nim", ".nix": "nix",
    ".pas": "pascal", ".php": "php", ".pl": "perl", ".pm": "perl", ".properties": "properties",
    ".proto": "protobuf", ".ps1": "powershell", ".py": "python", ".pyi": "python", ".r": "r",
    ".rb": "ruby", ".rs": "rust", ".s": "assembly", ".sass": "css", ".scala": "scala",
    ".scm": "scheme", ".scss": "css", ".sh": "shell", ".sql": "sql", ".sv": "verilog",
    ".swift": "swift", ".tcl": "tcl", ".tf": "terraform", ".toml": "toml", ".ts": "typescript",
    ".tsx": "typescript", ".v": "verilog", ".vb": "visual basic", ".vhd": "vhdl", ".vim": "vim",
    ".vue": "vue", ".xml": "xml", ".yaml": "yaml", ".yml": "yaml", ".zig": "zig", ".zsh": "shell",
}  # fmt: skip
"""Languages by the end of the file's name, in lower case."""

NAMED = {"makefile": "make", "dockerfile": "docker", "cmakelists.txt": "cmake", "rakefile": "ruby"}
"""Languages by the whole name, in lower case."""

_CLOSING = re.compile(r"[)}\]]|end\b|fi\b|done\b|esac\b|else\b|\);")


def read_code(text: str) -> Iterator[Block]:
    """One block for each top-level definition, with exact lines."""
    lines = text.split("\n")
    start, blank = 0, False
    for number, line in enumerate(lines):
        if not line.strip():
            blank = True
            continue
        if blank and not line[0].isspace() and not _CLOSING.match(line):
            yield from _piece(lines, start, number)
            start = number
        blank = False
    yield from _piece(lines, start, len(lines))


def _piece(lines: list[str], start: int, end: int) -> Iterator[Block]:
    while start < end and not lines[start].strip():
        start += 1
    while start < end and not lines[end - 1].strip():
        end -= 1
    if start < end:
        yield block("lines", lines[start:end], start + 1)
