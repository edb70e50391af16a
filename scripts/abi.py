"""What programs rely on in selm.h: its functions, structs, enums and initialisers.

    python scripts/abi.py            # compares the header with what was recorded
    python scripts/abi.py --record   # records it, if nothing that programs rely on has changed

Additions are recorded without more ado: functions, values of an enum, fields at a struct's end. For
any other change SELM_ABI has to be raised first, since programs have to be built anew.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

CPP = Path(__file__).parents[1] / "cpp"
HEADER, RECORD = CPP / "include" / "selm" / "selm.h", CPP / "abi.json"


def read(header: str) -> dict[str, Any]:
    """``{"abi": n, "functions": {name: signature}, "structs": {name: [field]}, "enums": {name:
    {value: number}}, "initialisers": {name: text}}``"""
    text = re.sub(r"/\*.*?\*/", " ", header, flags=re.S).replace("\\\n", " ")
    abi = re.search(r"^#define SELM_ABI (\d+)$", text, re.M)
    if abi is None:
        raise ValueError("the header has no #define SELM_ABI")
    initialisers = {
        name: _flat(value) for name, value in re.findall(r"^#define (\w+_INIT)\s+(.*)$", text, re.M)
    }
    code = re.sub(r"^#.*$", "", text, flags=re.M)
    functions = {}
    for signature in re.findall(r"SELM_API\s+([^;]+);", code):
        name = re.search(r"(\w+)\s*\(", signature)
        assert name is not None, signature
        functions[name[1]] = _flat(signature)
    structs = {
        name: [_flat(field) for field in _fields(body)]
        for body, name in re.findall(r"typedef struct \w+ \{(.*?)\}\s*(\w+);", code, re.S)
    }
    enums: dict[str, dict[str, int]] = {}
    for body, name in re.findall(r"typedef enum \w+ \{(.*?)\}\s*(\w+);", code, re.S):
        pairs = [part.split("=") for part in body.split(",") if part.strip()]
        enums[name] = {key.strip(): int(value) for key, value in pairs}
    return {
        "abi": int(abi[1]), "functions": functions, "structs": structs, "enums": enums,
        "initialisers": initialisers,
    }  # fmt: skip


def _fields(body: str) -> list[str]:
    """One entry each, also where a line declares several."""
    found = []
    for line in (part.strip() for part in body.split(";") if part.strip()):
        kind, *rest = line.split(",") if "(" not in line else [line]
        found.append(kind)
        base = kind.rsplit(None, 1)[0]
        found += [f"{base} {name.strip()}" for name in rest]
    return found


def _flat(text: str) -> str:
    return re.sub(r"\s*([(),*{}])\s*", r"\1", " ".join(text.split()))


def breaks(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What programs built against ``old`` would stumble over."""
    found = []
    for name, signature in old["functions"].items():
        if new["functions"].get(name) != signature:
            found.append(f"function {name}: {signature} -> {new['functions'].get(name, 'gone')}")
    for name, fields in old["structs"].items():
        if new["structs"].get(name, [])[: len(fields)] != fields:
            found.append(f"struct {name}: its first fields were {', '.join(fields)}")
    for name, values in old["enums"].items():
        for key, value in values.items():
            if new["enums"].get(name, {}).get(key) != value:
                found.append(f"enum {name}: {key} was {value}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help="write the record anew")
    arguments = parser.parse_args()
    new = read(HEADER.read_text(encoding="utf-8"))
    old = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else None
    found = breaks(old, new) if old and old["abi"] == new["abi"] else []
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("Raise SELM_ABI in selm.h, or undo this.", file=sys.stderr)
        return 1
    if arguments.record:
        RECORD.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    elif new != old:
        print("The header is not the recorded one: python scripts/abi.py --record", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
