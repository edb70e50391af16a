"""Pictures for the guide, taken from the snapshot tests.

    python scripts/chat_pictures.py

Copies some snapshots to docs/pictures without the link to a font on the network that the exporter
writes into them. Run it after snapshots were accepted.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SNAPSHOTS = ROOT / "tests" / "chat" / "__snapshots__" / "test_snapshots"
PICTURES = {
    "chat.svg": "test_a_conversation_with_code[80x24].svg",
    "chat-experts.svg": "test_colours_by_expert[80x24].svg",
    "chat-compare.svg": "test_two_replies[140x40].svg",
    "memory.svg": "test_memory[140x40].svg",
    "stats.svg": "test_statistics[140x40].svg",
    "sources.svg": "test_sources_under_a_reply[80x24].svg",
    "chat-turn.svg": "test_versions_and_a_correction[80x24].svg",
}


def main() -> None:
    target = ROOT / "docs" / "pictures"
    target.mkdir(exist_ok=True)
    for name, snapshot in PICTURES.items():
        text = (SNAPSHOTS / snapshot).read_text(encoding="utf-8")
        text = re.sub(r"@font-face\s*\{[^}]*\}\s*", "", text)
        assert "https://" not in re.sub(r'xmlns="[^"]*"|<!--.*?-->', "", text)
        (target / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
