"""selm.h is what was recorded: no program that was built against it breaks unnoticed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def abi() -> ModuleType:
    spec = importlib.util.spec_from_file_location("abi", ROOT / "scripts" / "abi.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def header(abi: ModuleType) -> str:
    text: str = abi.HEADER.read_text(encoding="utf-8")
    return text


def test_the_header_is_the_recorded_one(abi: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["abi"])
    assert abi.main() == 0, "python scripts/abi.py says what changed"


def test_everything_of_the_header_is_read(abi: ModuleType, header: str) -> None:
    found = abi.read(header)
    assert len(found["functions"]) == header.count("SELM_API") - 1 <= 60  # less its own definition
    assert len(found["structs"]) == len(re.findall(r"^typedef struct \w+ \{", header, re.M))
    assert len(found["enums"]) == len(re.findall(r"^typedef enum \w+ \{", header, re.M))
    assert all(name.startswith("selm_") for name in found["functions"])
    for name, fields in found["structs"].items():
        parts = ("selm_logit_bias", "selm_allocator", "selm_log", "selm_chat_message")
        plain = name in parts  # of others, never alone
        assert (fields[0] == "size_t struct_size") is not plain


@pytest.mark.parametrize(
    ("old", "new", "broken"),
    [
        ("selm_model_free(selm_model* model);", "selm_model_free(selm_model* m, int how);", True),
        ("uint32_t max_tokens;", "uint64_t max_tokens;", True),
        ("SELM_ERROR_IO = 2,", "SELM_ERROR_IO = 12,", True),
        ("SELM_API const char* selm_version(void);", "", True),
        ("  uint64_t seed; ", "  uint64_t extra; uint64_t seed; ", True),
        ("n_bias;\n} selm_sampling;", "n_bias;\n  int x;\n} selm_sampling;", False),
        ("SELM_API const char* selm_version(void);",
         "SELM_API const char* selm_version(void);\nSELM_API int selm_new(void);", False),
    ],
)  # fmt: skip
def test_what_breaks_programs(
    abi: ModuleType, header: str, old: str, new: str, broken: bool
) -> None:
    assert old in header
    before: dict[str, Any] = abi.read(header)
    after: dict[str, Any] = abi.read(header.replace(old, new))
    assert before != after and bool(abi.breaks(before, after)) is broken
