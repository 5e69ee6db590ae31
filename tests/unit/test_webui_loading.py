"""The extension takes the library of its own folder, whatever else is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def run(code: str, path: list[Path], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    env["PYTHONPATH"] = os.pathsep.join(map(str, path))
    return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)


def other(tmp_path: Path) -> Path:
    package = tmp_path / "site" / "saferegion"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '0.0.1'\n", encoding="utf-8")
    return package.parent


def test_the_library_of_the_folder_wins_over_an_installed_one(tmp_path: Path) -> None:
    code = f"import sys; sys.path.append({str(PROJECT)!r}); import saferegion_webui, saferegion as s; print(s.__file__)"
    done = run(code, [other(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == PROJECT / "saferegion" / "__init__.py"


def test_another_library_that_is_loaded_already_is_refused(tmp_path: Path) -> None:
    code = f"import saferegion, sys; sys.path.append({str(PROJECT)!r}); import saferegion_webui"
    done = run(code, [other(tmp_path)], tmp_path)
    assert done.returncode == 1
    assert "ImportError: Safe Region cannot start: another 'saferegion'" in done.stderr
    assert "pip uninstall" in done.stderr


def test_the_script_folder_holds_one_script_and_the_root_nothing_surprising() -> None:
    assert [p.name for p in (PROJECT / "scripts").glob("*.py")] == ["safe_region_script.py"]
    for file in (PROJECT / "localizations").glob("*.json"):
        texts = json.loads(file.read_text(encoding="utf-8"))
        assert texts and all(isinstance(k, str) and isinstance(v, str) and v for k, v in texts.items())
    tables = [json.loads(f.read_text(encoding="utf-8")).keys() for f in (PROJECT / "localizations").glob("*.json")]
    assert len(tables) == 4 and all(t == tables[0] for t in tables)
