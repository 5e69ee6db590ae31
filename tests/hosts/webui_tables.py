"""Writes docs/measured/webui.md of what the suites of the webui's family saw.

usage: SAFE_REGION_SEEN=FOLDER pytest -n 0 -m hosts tests/hosts/test_webui_features.py …    (keeps it in FOLDER)
       python tests/hosts/webui_tables.py FOLDER    (writes the page of it)
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SEEN = "SAFE_REGION_SEEN"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "measured" / "webui.md"
HOSTS = {"webui": "AUTOMATIC1111 1.10.1", "forge": "Forge", "neo": "Forge Neo"}
SUITES = (
    "test_webui_features.py", "test_webui_balance.py", "test_webui_public.py", "test_webui_policy.py",
    "test_neo_engines.py", "soak_webui.py",
)  # fmt: skip
HEAD = f"""# stable-diffusion-webui, Forge, Forge Neo

Every cell is one test in the real host on a CPU, with the microworld (a small Stable Diffusion 1 of this project) as
its checkpoint. *fire 1.00 → 0.00*: the share of pictures in which the microworld's judge sees fire, without and with
the guard; *identical*: every byte of a harmless prompt's pictures with the guard is as it is without. The tests write
the tables:

```
cd tests/hosts
{SEEN}=seen pytest -n 0 -m hosts {" ".join(SUITES)}
python webui_tables.py seen
```
"""
PUBLIC = """Other people's extensions

Installed from their repositories, at the commits that are named, and switched on in a request. *guarded*: no fire, and
the picture's parameters name what was kept out; *refused*: no picture, and a sentence in its place."""
ENGINES = """Engines of Forge Neo

Each of Neo's own class around a small random text encoder of its own kind; no diffusion model."""
COST = """Cost

Requests over the API, one after another; the diffusion model is the microworld's, whose step is far shorter than a real
one's, so that a share of its time is far larger. Other work went on on the same two processor cores: the time of a
request is of that day, processor time is the host's own."""
POLICY = """Under an operator's policy

A policy that guards fire and refuses lightning is in force ([operators](../operators.md)); each row is what a
user or an extension does to get a picture of a burning house all the same. *refused*: an error and no picture."""
PARTS = {
    "features": ("What a prompt can hold, and where it is painted\n", "feature"),
    "public": (f"{PUBLIC}\n", "extension"),
    "policy": (f"{POLICY}\n", "what is tried"),
    "engines": (f"{ENGINES}\n", "engine"),
    "cost": (f"{COST}\n", "what"),
}
"""File of what was seen -> title and text, and the heading of the rows."""


def seen(part: str, row: str, column: str, text: str) -> None:
    """Keep what a test saw, where someone asks for it."""
    folder = os.environ.get(SEEN)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with (Path(folder) / f"{part}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps([row, column, text]) + "\n")


def table(part: str, file: Path) -> str:
    """The newest of what was seen, rows and columns in the order in which they came first."""
    title, first = PARTS[part]
    cells: dict[str, dict[str, str]] = {}
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    columns = list(dict.fromkeys(column for _, column, _ in found))
    columns.sort(key=lambda c: list(HOSTS).index(c) if c in HOSTS else len(HOSTS))
    for row, column, text in found:
        cells.setdefault(row, {})[column] = text
    lines = [
        "| " + " | ".join([first, *(HOSTS.get(c, c) for c in columns)]) + " |",
        "|---" * (len(columns) + 1) + "|",
        *("| " + " | ".join([row, *(texts.get(c, "") for c in columns)]) + " |" for row, texts in cells.items()),
    ]
    return f"## {title}\n" + "\n".join(lines) + "\n"


def unseen(file: Path) -> str:
    """The extensions that were asked for and are not in the table."""
    from webui_public import CASES

    rows = [json.loads(line)[0] for line in file.read_text(encoding="utf-8").splitlines()]
    left = [name for name in CASES if not any(row.startswith(f"{name} (") for row in rows)]
    return f"Not seen at work so far: {'; '.join(left)}.\n" if left else ""


def main(folder: Path) -> None:
    files = {part: folder / f"{part}.jsonl" for part in PARTS}
    found = {part: table(part, file) for part, file in files.items() if file.is_file()}
    if "public" in found:
        found["public"] += f"\n{unseen(files['public'])}"
    PAGE.write_text("\n".join([HEAD, *found.values()]), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
