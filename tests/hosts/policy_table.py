"""Writes docs/measured/operators.md of what the suites of the policy saw in ComfyUI.

usage: SAFE_REGION_TABLE=FILE pytest -n 0 -m hosts tests/hosts/test_comfyui_policy.py …    (adds rows to FILE)
       python tests/hosts/policy_table.py FILE    (writes the page of it)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "measured" / "operators.md"
HOSTS = {"comfyui": "ComfyUI 0.33.0", "comfyui-0.3": "ComfyUI 0.3.64"}
HEAD = """# An operator's policy in ComfyUI

Every cell is one test in the real host on a CPU, with the microworld as its checkpoint and a policy that guards fire;
the workflows hold no node of this pack but where they say so. *1 → 0*: pictures with fire without the policy and with
it, of the same seed; *quiet*: it paints no fire without the policy either (of eight seeds); *refused*: an error, and no
picture. The tests write the table, in tests/hosts:

```
SAFE_REGION_TABLE=rows.jsonl pytest -n 0 -m hosts test_comfyui_policy.py test_comfyui_policy_fuzz.py
python policy_table.py rows.jsonl
```
"""


def cell(row: dict[str, Any] | None) -> str:
    """What one host did."""
    if row is None:
        return ""
    if row["refused"]:
        return "refused"
    return f"{row['without']} → {row['fire']}" if row["without"] else f"quiet, {row['fire']}"


def page(rows: list[dict[str, Any]]) -> str:
    """The whole page."""
    by = {(r["row"], r["host"]): r for r in rows}
    hosts = [h for h in HOSTS if any(r["host"] == h for r in rows)]
    names = list(dict.fromkeys(r["row"] for r in rows if "without" in r))
    lines = [HEAD, f"| what is tried | {' | '.join(HOSTS[h] for h in hosts)} |", f"|---|{'---|' * len(hosts)}"]
    lines += [f"| {name} | {' | '.join(cell(by.get((name, h))) for h in hosts)} |" for name in names]
    for row in (r for r in rows if "actions" in r):
        seen = ", ".join(f"{k} {v:,}" for k, v in sorted(row.items()) if k not in ("row", "host", "fire", "actions"))
        lines += [
            f"\n{row['actions']:,} random actions of a client (workflows of these rows with other prompts, settings, "
            f"broken ones, rubbish to addresses) in {HOSTS[row['host']]}: fire in **{row['fire']}** pictures; {seen}. "
            "The host lived on, painted the same harmless picture before and after, and its log verifies."
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    found = [json.loads(line) for path in sys.argv[1:] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    PAGE.write_text(page(found), encoding="utf-8")
