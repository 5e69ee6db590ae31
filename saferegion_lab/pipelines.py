"""Writes the table of pipeline classes: what the installed diffusers has, what each takes and gives of text, and why
some are refused. ``python -m saferegion_lab.pipelines`` writes ``saferegion/diffusers/pipelines.json`` and the table in
``docs/diffusers-classes.md``."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from saferegion.core.writing import write_whole
from saferegion.diffusers.table import TABLE, Signature, slot_of, text_parameters

DOCS = Path(__file__).resolve().parents[1] / "docs" / "diffusers-classes.md"
_SOUND = "it makes sound, not pictures"
_READS = "its text encoder reads pictures together with the prompt"
_PAST = "part of its text goes past encode_prompt"
_PARTS = "it only puts other pipelines together; guard the pipelines inside it"
REFUSED: tuple[tuple[str, str], ...] = (
    (r"AceStep|Audio|MusicLDM|Spectrogram|Text2Audio", _SOUND),
    (r"QwenImageEdit|LongCatImageEdit|JoyImageEdit|Kandinsky5I2I|BriaFibo2|DreamLite|BlipDiffusion", _READS),
    (r"HunyuanVideoImageToVideo|FluxPriorRedux", _READS),
    (r"GLIGEN|StableUnCLIPPipeline|Pix2PixZero|GlmImage|UniDiffuser|VisualCloze", _PAST),
    (r"Combined|AutoPipelineFor", _PARTS),
    (r"BriaFibo", "its transformer reads every layer of its text encoder"),
    (r"LEdits", "its prompts say what to add and what to take away"),
    (r"SanaWM", "it encodes one prompt at a time, into embeddings of four dimensions"),
    (r"Ideogram4", "its prompt and its picture are one sequence"),
    (r"DiffusionGemma|LLaDA2", "it writes text, it paints no pictures"),
    (r"Onnx|ONNX", "it runs outside of torch"),
    (
        r"StableDiffusionPipelineSafe",
        "it is a guard of its own, and encodes its prompt elsewhere than in encode_prompt",
    ),
)
_ELSEWHERE = "it encodes its prompt elsewhere than in encode_prompt"
_NO_PIPELINE = re.compile(r".*Output|.*Blocks|PipelineQuantizationConfig|DiffusionPipeline")


def classes() -> dict[str, dict[str, Any]]:
    """The rows of the table, by the name of the class; classes that take no text are left out."""
    import diffusers

    found: dict[str, dict[str, Any]] = {}
    for name in sorted(n for n in dir(diffusers) if "Pipeline" in n and not _NO_PIPELINE.fullmatch(n)):
        try:
            cls = getattr(diffusers, name)
        except (AttributeError, ImportError, RuntimeError):  # named, and not to be had
            found[name] = {"refused": _reason(name) or "the installed diffusers cannot give it"}
            continue
        if inspect.isclass(cls) and (row := _row(name, cls)) is not None:
            found[name] = row
    return found


def _reason(name: str) -> str:
    return next((why for pattern, why in REFUSED if re.search(pattern, name)), "")


def _row(name: str, cls: Any) -> dict[str, Any] | None:
    reason = _reason(name)
    if "ModularPipeline" in name:
        return {"refused": "a modular pipeline has no encode_prompt, and there is no block for it yet"}
    try:
        encode = getattr(cls, "encode_prompt", None)
        call = next((c.__dict__["__call__"] for c in cls.__mro__ if "__call__" in c.__dict__), None)
        calls = () if call is None else text_parameters(call)
    except ImportError as error:
        lacking = re.search(r"requires the (.+?) library", str(error))
        return {
            "refused": reason or f"it needs {lacking[1] if lacking else 'what is not installed'}, which was not there"
        }
    if encode is None:
        texts = any("prompt" in p or p == "text" for p in calls)
        return {"refused": reason or _ELSEWHERE} if texts or "AutoPipelineFor" in name else None
    try:
        seen = Signature.of(cls)
    except ValueError as error:
        return {"refused": reason or f"of its encode_prompt, {error}"}
    unknown = [n for n in seen.gives if slot_of(n) is None]
    row: dict[str, Any] = {"takes": seen.takes, "calls": seen.calls, "gives": seen.gives}
    reason = reason or (f"its encode_prompt returns {', '.join(unknown)}, which is not known" if unknown else "")
    return row | ({"refused": reason} if reason else {})


def page(version: str, rows: dict[str, dict[str, Any]]) -> str:
    """The table for people."""
    guarded = [n for n, r in rows.items() if not r.get("refused")]
    lines = [
        f"# Pipeline classes of diffusers {version} that take text",
        "",
        f"{len(guarded)} are guarded, {len(rows) - len(guarded)} are refused by name. Written by "
        "`python -m saferegion_lab.pipelines`.",
        "",
        "| class | `encode_prompt` returns, or why it is refused |",
        "|---|---|",
    ]
    lines += [f"| {n} | {r.get('refused') or ', '.join(r['gives'])} |" for n, r in rows.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    import diffusers

    rows = classes()
    before = json.loads(TABLE.read_text(encoding="utf-8"))
    if before["diffusers"] == diffusers.__version__:  # written where more was installed beside it
        missing = [n for n, r in rows.items() if str(r.get("refused", "")).endswith("which was not there")]
        rows |= {n: before["classes"][n] for n in missing if n in before["classes"]}
    lines = ",\n".join(f'  "{n}": {json.dumps(r)}' for n, r in rows.items())
    text = f'{{\n "diffusers": "{diffusers.__version__}",\n "classes": {{\n{lines}\n }}\n}}\n'
    write_whole(TABLE, text.encode())
    write_whole(DOCS, page(diffusers.__version__, rows).encode())
    refused = sum(bool(r.get("refused")) for r in rows.values())
    print(f"diffusers {diffusers.__version__}: {len(rows) - refused} classes guarded, {refused} refused")


if __name__ == "__main__":
    main()
