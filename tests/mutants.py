"""Do the tests notice when the core breaks? Each mutant changes one line in a copy; its tests must fail.

python tests/mutants.py [NUMBER ...]      writes benchmarks/mutants.json
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
GEOMETRY, DETECTOR, REGION = "test_geometry.py", "test_detector.py", "test_region.py"
CORE = "saferegion/core/"
AT_A_TIME = 3

MUTANTS: list[tuple[str, str, str, tuple[str, ...]]] = [
    # solve
    (CORE + "geometry.py", "return excess.clamp_min(0)\n", "return excess\n", (GEOMETRY, REGION)),
    (CORE + "geometry.py", "- gram / most)", "+ gram / most)", (GEOMETRY,)),
    (CORE + "geometry.py", "push = excess / most", "push = excess", (GEOMETRY,)),
    (CORE + "geometry.py", "ahead, kept).clamp_min(0)", "ahead, kept)", (GEOMETRY,)),
    (CORE + "geometry.py", "if float(apart) < SETTLED:", "if True:", (GEOMETRY,)),
    (CORE + "geometry.py", "beta=-1)", "beta=1)", (DETECTOR,)),
    (CORE + "geometry.py", "torch.where(mask.unsqueeze(-1), values, 0.0).sum(1)", "values.sum(1)", (GEOMETRY, DETECTOR)),
    (CORE + "geometry.py", "with torch.autocast(kind, enabled=False):", "if True:", (GEOMETRY,)),
    # readout and detector
    (CORE + "readout.py", "shifted = following.index_select(1, self.bias(x.shape[1], x.device)[1])", "shifted = following", (DETECTOR,)),
    (CORE + "readout.py", "torch.where(mask.index_select(1, after), after, at)", "after.expand(mask.shape)", (DETECTOR,)),
    (CORE + "readout.py", "| ((self.period > 1) & ((at + 1) % self.period == 0))", "", (DETECTOR,)),
    (CORE + "readout.py", "each = torch.where(places.mask.unsqueeze(-1), each, -torch.inf)", "pass", (DETECTOR,)),
    (CORE + "readout.py", "return [each.amax(1), whole]", "return [each.mean(1), whole]", (DETECTOR,)),
    (CORE + "readout.py", "o.T[at % o.shape[1]]", "o.T[at * 0]", (DETECTOR,)),
    (CORE + "readout.py", "if not bool(torch.isfinite(value).all()):", "if False:", (DETECTOR,)),
    (CORE + "readout.py", "if float(value.abs().max()) > LARGEST_VALUE:", "if False:", (DETECTOR,)),
    (CORE + "detector.py", "return (_sums(scores) - here[\"borders\"])", "return _sums(scores)", (DETECTOR, REGION)),
    (CORE + "detector.py", "return left + right", "return left - right", (DETECTOR,)),
    (CORE + "detector.py", "found = torch.minimum(own,", "found = torch.maximum(own,", (DETECTOR, REGION)),
    (CORE + "detector.py", "thresholds=self.thresholds * part", "thresholds=self.thresholds", (DETECTOR,)),
    (CORE + "detector.py", "if float(torch.cat(borders).abs().max()) > FURTHEST:", "if False:", (DETECTOR,)),
    (CORE + "detector.py", "*index.shape).amax(-1)", "*index.shape).amin(-1)", (DETECTOR, REGION)),
    (CORE + "detector.py", "columns = _sums(scores) - here[\"borders\"]", "columns = _sums(scores)", (DETECTOR, REGION)),
    (CORE + "detector.py", "self.most).any(-1)", "self.most).all(-1)", (REGION,)),
    (CORE + "readout.py", "(mask / number)", "mask.float()", (DETECTOR,)),
    (CORE + "geometry.py", "[kept, one, none, none]]", "[none, one, none, none]]", (GEOMETRY,)),
    # move
    (CORE + "movers.py", "excess = along[..., :half] + reach", "excess = along[..., :half] + 1", (REGION,)),
    (CORE + "movers.py", "excess = torch.where(mine[..., :half], excess, geometry.SHUT)", "pass", (REGION,)),
    (CORE + "movers.py", "solved * here[\"part\"][:half] if self._partial else solved", "solved", (REGION,)),
    (CORE + "movers.py", "(power - 1).clamp_min(0)", "(power - 1) * 0", (REGION,)),
    (CORE + "movers.py", "given = -torch.where(mine[..., half:]", "given = torch.where(mine[..., half:]", (REGION,)),
    (CORE + "region.py", "_under(places, a)\n        return Motion(amounts, {} if", "a\n        return Motion(amounts, {} if", (REGION,)),
    # verify
    (CORE + "region.py", "return open_ & opened.any(1, keepdim=True)", "return open_ & False", (REGION,)),
    (CORE + "region.py", "& opened.any(1, keepdim=True)", "& opened", (REGION,)),
    (CORE + "region.py", "open_ = open_ | still[:, count : 2 * count] & opened", "pass", (REGION,)),
    (CORE + "region.py", "return Motion(motion.amounts, self._atlas.holding(after, over))", "return motion", (REGION,)),
    (CORE + "region.py", "unresolved = self.verify(panel.over(scores), opened)", "unresolved = None", (REGION,)),
    (CORE + "region.py", "motion = _where(still.any(1), self.move(seen, opened, depth, motion), motion)", "motion = self.move(seen, opened, depth, motion)", (REGION,)),
    (CORE + "atlas.py", "new = torch.where(amount.any(-1, keepdim=True), new, rows)", "pass", (REGION,)),
    (CORE + "region.py", "if not is_open:\n                return c,", "if False:\n                return c,", (REGION,)),
    (CORE + "region.py", "_require_finite(sums[: len(seen)], seen)", "pass", (REGION,)),
    (CORE + "region.py", "order = sorted(range(len(self.names)), key=lambda i: (self.names[i], self.directions[i].digest()))", "order = list(range(len(self.names)))", (REGION,)),
    (CORE + "region.py", "self.encoder.require(c.encoder, \"This safe region\")", "pass", (REGION,)),
    (CORE + "region.py", "most = 1.0 if mode == \"erase\" else STRONGEST", "most = STRONGEST", (REGION,)),
    (CORE + "direction.py", "if missing and self.meta.method != \"imported\":", "if False:", (REGION,)),
    (CORE + "report.py", "if self.unresolved:\n", "if False:\n", (REGION,)),
    (CORE + "spaces.py", "if top < down and up < bottom and left < far and near < right:", "if False:", ("test_conditioning.py",)),
    # fingerprint and files
    (CORE + "fingerprint.py", "return self.distance(other) <= TOLERANCE", "return self.distance(other) <= 0.6", ("test_fingerprint.py",)),
    (CORE + "fingerprint.py", "if self.widths != other.widths:\n            return float(\"inf\")", "if False:\n            return float(\"inf\")", ("test_fingerprint.py",)),
    ("saferegion/guard/files.py", "if still > 0:", "if False:", ("test_files.py",)),
    ("saferegion/guard/files.py", "if name != \"given detector\" and max(moved) <= 0:", "if False:", ("test_files.py",)),
    (CORE + "file_format.py", "if digest.hexdigest().encode() !=", "if digest.hexdigest().encode() is None and", ("test_files.py", "test_hostile_files.py")),
    ("saferegion/learn/calibrate.py", "low = max(low, float(empty[i]) + CLEAR)", "pass", ("test_compile.py",)),
    ("saferegion/learn/calibrate.py", "float(torch.quantile(near[:, i].double(), NEAR))", "float(torch.quantile(near[:, i].double(), 0.0))", ("test_compile.py",)),
]  # fmt: skip


def caught(number: int, folder: Path) -> bool:
    """Whether the tests of a mutant fail in a copy of the project."""
    file, old, new, tests = MUTANTS[number]
    path = folder / file
    text = path.read_text(encoding="utf-8")
    if text.count(old) < 1:
        raise SystemExit(f"mutant {number}: {old!r} no longer stands in {file}; write it anew")
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    try:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-n",
            "0",
            "-m",
            "not slow and not hosts",
            "-p",
            "no:cacheprovider",
        ]
        command += [f"tests/unit/{t}" for t in tests]
        where = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "SAFE_REGION_NO_SHRINK": "1"}
        return subprocess.run(command, cwd=folder, env=where, capture_output=True, timeout=900).returncode != 0
    finally:
        path.write_text(text, encoding="utf-8")


def _tell(number: int, folder: Path) -> dict[str, object]:
    start = time.monotonic()
    file, old, new, _ = MUTANTS[number]
    found = caught(number, folder)
    word = "caught  " if found else "SURVIVED"
    print(f"{number:3d} {word} {time.monotonic() - start:5.1f} s  {old[:80]!r}", flush=True)
    return {"file": file, "from": old, "to": new, "caught": found}


def main(numbers: list[int]) -> None:
    chosen = numbers or list(range(len(MUTANTS)))
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()  # copies of the project, one for each that runs at a time

    def one(number: int) -> dict[str, object]:
        folder = free.get()
        try:
            return _tell(number, folder)
        finally:
            free.put(folder)

    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(AT_A_TIME) as pool:
        for copy in range(AT_A_TIME):
            folder = Path(name) / str(copy)
            for part in ("saferegion", "tests/unit", "vectors"):
                shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(ROOT / "pyproject.toml", folder)
            free.put(folder)
        rows = list(pool.map(one, chosen))
    total = sum(bool(r["caught"]) for r in rows)
    print(f"{total} of {len(rows)} mutants caught")
    if not numbers:
        out = ROOT / "benchmarks" / "mutants.json"
        out.write_text(
            json.dumps({"caught": total, "mutants": len(rows), "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main([int(a) for a in sys.argv[1:]])
