"""What guarding costs, as ratios to one encoder pass of the same prompt on the same device.

Encoders are full-size with random weights: CLIP-L, OpenCLIP bigG and, as its 24 GB do not fit everywhere, one block of
T5-XXL times 24. Each ratio is the median over paired rounds, encoder pass and guard in turn. Directions are random too,
each with the terms that compiled concepts have: a word with the next, the prompt as a whole, and their sum.

Compiling is measured against the bare batched passes: on CLIP-L with the encoder's own passes, and in the shapes of all
three beside random tokens that cost next to nothing, so that what is left is the compilation's own time and memory, set
against the pass of the same encoder above.
"""

from __future__ import annotations

import gc
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from saferegion.core import geometry
from saferegion.core.conditioning import Conditioning
from saferegion.core.detector import Detector
from saferegion.core.direction import Direction
from saferegion.core.fingerprint import PROBES, Fingerprint
from saferegion.core.movers import HalfSpaces
from saferegion.core.readout import Readout, Term
from saferegion.core.region import SafeRegion
from saferegion.guard.library import Library
from saferegion.learn.bundled import neutral_prompts
from saferegion.learn.compile import compile_many
from saferegion.learn.prompts import Plan, filling, neutral_halves
from saferegion.learn.recipes import Concept
from saferegion.learn.settings import CompileSettings

from . import machine

CONCEPTS = 12
HALF_SPACES = (1, 2, 12, 64)
Progress = Callable[[int, int], None]

IMPORT = (
    "import time, torch, numpy, safetensors.torch; t = time.perf_counter(); import saferegion as sr; "
    "sr.SafeRegion, sr.Conditioning, sr.load_directions, sr.load_concept, sr.compile; print(time.perf_counter() - t)"
)


@dataclass(frozen=True)
class Setup:
    """How the figures are taken."""

    rounds: int
    device: str


Shape = tuple[int, int, int]


def run(rounds: int = 15, threads: int = 1, device: str = "cpu", progress: Progress | None = None) -> dict[str, Any]:
    """All cost figures. ``threads``: CPU threads; ``device``: of encoder and guard."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    setup = Setup(rounds, device)
    encoders: tuple[tuple[str, Shape, Callable[[int, str], Encoder]], ...] = (
        ("CLIP-L", (1, 77, 768), _clip_large),
        ("OpenCLIP bigG", (1, 154, 2048), _clip_big),
        ("T5-XXL (24 x one block)", (1, 512, 4096), _t5_block),
    )
    parts: list[Callable[[], Any]] = [
        *(partial(_guarding, *e, setup) for e in encoders),
        calls,
        lambda: _project(setup),
        lambda: _compile(setup),
        lambda: [_overhead(name, shape, setup) for name, shape in SHAPES],
        rows,
        lambda: _import(max(5, rounds // 2)),
    ]
    found = []
    try:
        with torch.inference_mode():
            for number, part in enumerate(parts, 1):
                found.append(part())
                if progress is not None:
                    progress(number, len(parts))
    finally:
        torch.set_num_threads(before)
    count = len(encoders)
    for own, guarded in zip(found[count + 3], found[:count], strict=True):
        own["of_bare"] = own["ms_a_prompt"] / guarded["encoder_ms"]
    names = ("calls", "project", "compile", "compile_overhead", "rows", "import_ms")
    return {
        "machine": machine(device),
        "threads": threads,
        "device": device,
        "rounds": rounds,
        "concepts": CONCEPTS,
        "guard": found[:count],
        **dict(zip(names, found[count:], strict=True)),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures for people."""
    cost = Table("encoder", "shape", "encoder pass ms", "guard ms, benign", "share", "guard ms, unsafe", "share")
    cost.title = (
        f"guarding one conditioning, {result['concepts']} concepts, {result['threads']} thread(s), "
        f"{result['machine'].get('gpu') or result['machine']['cpu']}"
    )
    for row in result["guard"]:
        cost.add_row(
            row["encoder"],
            "x".join(map(str, row["shape"][1:])),
            f"{row['encoder_ms']:.1f}",
            f"{row['benign_ms']:.3f}",
            f"{row['benign_share']:.4%}",
            f"{row['unsafe_ms']:.3f}",
            f"{row['unsafe_share']:.4%}",
        )
    graph = Table("half-spaces", "project ms", "of their product", "of all forms'", "of one half-space")
    graph.title = "project, in a graph"
    for row in result["project"]:
        shares = (f"{row['of_product']:.1f} x", f"{row['of_forms']:.1f} x", f"{row['of_one']:.2f} x")
        graph.add_row(str(row["half_spaces"]), f"{row['ms']:.3f}", *shares)
    beside = Table("shape", "prompts", "own time s", "a prompt ms", "of a pass", "own memory MB")
    beside.title = "compiling one concept, beside the encoder"
    for row in result["compile_overhead"]:
        beside.add_row(
            f"{row['encoder']}, {'x'.join(map(str, row['shape']))}", str(row["prompts"]), f"{row['seconds']:.1f}",
            f"{row['ms_a_prompt']:.2f}", f"{row['of_bare']:.1%}", f"{row['peak_mb']:.0f}",
        )  # fmt: skip
    other = Table("what", "figure", title="calls, compile and import")
    other.add_row("Python calls of one apply, 12 concepts, nothing open", str(result["calls"]["python"]))
    other.add_row("calls into torch and other C functions", str(result["calls"]["c"]))
    other.add_row("compile / bare batched encoder passes, CLIP-L", f"{result['compile']['ratio']:.3f}")
    other.add_row("prompts read for all bundled concepts", f"{result['rows']['all']:,}")
    other.add_row("prompts read for one, mean and most", f"{result['rows']['mean']:,} and {result['rows']['most']:,}")
    other.add_row("import, torch already imported", f"{result['import_ms']:.1f} ms")
    return [cost, graph, beside, other]


# -- encoders --------------------------------------------------------------------------------------------------------

Encoder = tuple[Callable[[], torch.Tensor], int]
"""One pass, and by how much its time is multiplied."""


def _clip(config: Any, length: int, device: str) -> Encoder:
    from transformers import CLIPTextModel

    model = CLIPTextModel(config).eval().to(device)
    ids = torch.randint(1, 40000, (length // 77, 77), device=device)
    return (lambda: model(input_ids=ids).last_hidden_state), 1


def _clip_large(length: int, device: str) -> Encoder:
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    return _clip(config, length, device)


def _clip_big(length: int, device: str) -> Encoder:
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu"
    )
    return _clip(config, length, device)


def _t5_block(length: int, device: str) -> Encoder:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=64, d_model=4096, d_kv=64, d_ff=10240, num_layers=1, num_heads=64, feed_forward_proj="gated-gelu"
    )
    model = T5EncoderModel(config).eval().to(device)
    ids = torch.randint(1, 60, (1, length), device=device)
    return (lambda: model(input_ids=ids).last_hidden_state), 24


# -- guarding --------------------------------------------------------------------------------------------------------


def region_of(width: int, length: int, count: int = CONCEPTS, seed: int = 0) -> SafeRegion:
    """Random concepts with what a compiled one has: two terms and their sum, a witness of the same, and a displacement;
    each leans a little towards what they have in common."""
    g = torch.Generator().manual_seed(seed)
    common = torch.randn(width, generator=g)
    mark = Fingerprint((("tokens", width),), tuple([0.0] * 32))
    found = []
    for k in range(count):
        u = torch.randn(width, generator=g) + 0.7 * common
        u = u / u.norm()
        detectors = [_detector(u, length, g) for _ in range(2)]
        mover = HalfSpaces(5 * u[None], torch.zeros(1, length), torch.ones(1), torch.zeros(1))
        rest = {"tokens": torch.zeros(1, width)}
        found.append(Direction(f"concept-{k}", mark, detectors[0], {"tokens": mover}, rest, detectors[1]))
    return SafeRegion(found)


def _detector(u: torch.Tensor, length: int, g: torch.Generator) -> Detector:
    near = u + 0.3 * torch.nn.functional.normalize(torch.randn(len(u), generator=g), dim=0)
    pair = torch.cat([near, 0.1 * torch.nn.functional.normalize(torch.randn(len(u), generator=g), dim=0)])
    terms = (
        Term(Readout("tokens", "pair"), pair[None], torch.zeros(1, length)),
        Term(Readout("tokens", "mean"), 4 * near[None], torch.zeros(1, 1)),
    )
    return Detector(terms, torch.full((2,), 6.0), ((0, 1),), torch.full((1,), 9.0))


def _cases(shape: Shape, region: SafeRegion, device: str) -> dict[str, Conditioning]:
    """One prompt that nothing finds, and one that two concepts find in every second token."""
    g = torch.Generator().manual_seed(1)
    benign = torch.randn(shape, generator=g) / 2  # no score of them comes near six deviations
    unsafe = benign.clone()
    mask = torch.ones(shape[:2], dtype=torch.bool)
    mask[:, ::77] = False
    u = torch.cat([m.unit for d in region.directions[:2] if isinstance(m := d.movers["tokens"], HalfSpaces)])
    unsafe[:, 5::2] += 12 * u.sum(0)
    cases = {n: Conditioning(t.to(device), mask.to(device)) for n, t in (("benign", benign), ("unsafe", unsafe))}
    moved = {n: region.apply(case)[1].moved for n, case in cases.items()}
    if moved != {"benign": False, "unsafe": True}:
        raise AssertionError(f"The cases of this benchmark are not what they are called: {moved}.")
    return cases


def _guarding(name: str, shape: Shape, encoder: Callable[[int, str], Encoder], setup: Setup) -> dict[str, Any]:
    return _guard(name, shape, encoder(shape[1], setup.device), setup)


def _guard(name: str, shape: Shape, encoder: Encoder, setup: Setup) -> dict[str, Any]:
    region = region_of(shape[2], min(shape[1], 77) if shape[1] % 77 == 0 else 1)
    cases, (encode, times) = _cases(shape, region, setup.device), encoder
    encode()
    seen: dict[str, list[float]] = {"encoder": [], "benign": [], "unsafe": []}
    for _ in range(setup.rounds):
        seen["encoder"].append(times * _time(encode, setup.device))
        for which, case in cases.items():
            seen[which].append(min(_time(partial(region.apply, case), setup.device) for _ in range(3)))
    found: dict[str, Any] = {"encoder": name, "shape": list(shape)}
    for which, values in seen.items():
        found[f"{which}_ms"] = statistics.median(values) * 1e3
    for which in cases:
        found[f"{which}_share"] = statistics.median(a / b for a, b in zip(seen[which], seen["encoder"], strict=True))
    return found


def calls(shape: Shape = (1, 77, 768)) -> dict[str, int]:
    """Function calls of one ``apply`` with :data:`CONCEPTS` concepts where nothing is open, after the first one."""
    region = region_of(shape[2], 77)
    case = _cases(shape, region, "cpu")["benign"]
    counted: Counter[str] = Counter()

    def count(_frame: object, event: str, _what: object) -> None:
        counted[event] += 1

    for _ in range(3):
        region.apply(case)
    sys.setprofile(count)
    try:
        region.apply(case)
    finally:
        sys.setprofile(None)
    return {"python": counted["call"], "c": counted["c_call"] - 1}  # the last is setprofile


def _project(setup: Setup, shape: Shape = (1, 77, 768)) -> list[dict[str, Any]]:
    """``project`` with some half-spaces against one bare product with as many vectors, against one with all linear
    forms that their detectors and witnesses ask, and against one half-space."""
    g = torch.Generator().manual_seed(2)
    tokens = (torch.randn(shape, generator=g) / 2).to(setup.device)
    mask = torch.ones(shape[:2], dtype=torch.bool, device=setup.device)
    made = {k: region_of(shape[2], 77, k) for k in HALF_SPACES}
    forms = {k: k * (1 + 2 * 3) for k in HALF_SPACES}  # of two detectors: a word, the next, the whole
    bare = {
        n: (torch.randn(shape[2], n).to(setup.device), torch.zeros(shape[1], n).to(setup.device))
        for n in {*HALF_SPACES, *forms.values()}
    }
    seen: dict[int, list[tuple[float, float, float]]] = {k: [] for k in HALF_SPACES}
    for turn in range(setup.rounds + 1):
        for k, region in made.items():
            own = min(_time(partial(region.project, tokens, mask), setup.device) for _ in range(3))
            product, wide = (
                min(_time(partial(geometry.coordinates, tokens, *bare[n]), setup.device) for _ in range(3))
                for n in (k, forms[k])
            )
            if turn:  # the first warms up
                seen[k].append((own, product, wide))
    one = statistics.median(times[0] for times in seen[1])
    return [
        {
            "half_spaces": k,
            "forms": forms[k],
            "ms": statistics.median(own for own, *_ in times) * 1e3,
            "product_ms": statistics.median(product for _, product, _ in times) * 1e3,
            "of_product": statistics.median(own / product for own, product, _ in times),
            "of_forms": statistics.median(own / product for own, _, product in times),
            "of_one": statistics.median(own for own, *_ in times) / one,
        }
        for k, times in seen.items()
    ]


def _time(call: Callable[[], object], device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


# -- compiling -------------------------------------------------------------------------------------------------------

SETTINGS = CompileSettings()
SHAPES: tuple[tuple[str, Shape], ...] = (
    ("CLIP-L", (1, 77, 768)),
    ("SDXL, two chunks", (1, 154, 2048)),
    ("T5-XXL", (1, 512, 4096)),
)
"""As the encoders that are timed, in their order."""
FEW = {"pairs": 40, "neutral": 200}
"""Prompts of the compilation that is measured alone: what it does grows with their number."""


def _concept(pairs: int) -> Concept:
    return Concept.from_pairs("speed", [(f"unsafe {i}", f"safe {i}") for i in range(pairs)])


def _compile(setup: Setup) -> dict[str, Any]:
    """Compile one concept on a random CLIP-L against the same batches through the bare encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    config.eos_token_id = 49407
    model = CLIPTextModel(config).eval().to(setup.device)
    generator = torch.Generator().manual_seed(0)
    known: dict[str, torch.Tensor] = {}

    def encode(prompts: list[str]) -> Conditioning:
        for p in prompts:
            if p not in known:
                known[p] = torch.randint(1, 40000, (77,), generator=generator)
                known[p][1:9] = 7 if p.startswith("unsafe") else 9
            known[p][-1] = 49407
        ids = torch.stack([known[p] for p in prompts]).to(setup.device)
        result = model(input_ids=ids)
        return Conditioning(result.last_hidden_state, None, result.pooler_output)

    concept, neutral = _concept(24), [f"neutral {i}" for i in range(96)]
    texts = list(dict.fromkeys([*(t for pair in concept.pairs for t in pair), *neutral, ""]))
    batches = [list(PROBES), *(texts[i : i + SETTINGS.batch_size] for i in range(0, len(texts), SETTINGS.batch_size))]

    def bare() -> None:
        for batch in batches:
            encode(batch)

    ratios = []
    with torch.no_grad():
        bare()
        for _ in range(max(3, setup.rounds // 5)):
            alone = _time(bare, setup.device)
            ratios.append(_time(lambda: compile_many([concept], encode, neutral), setup.device) / alone)
    prompts = sum(map(len, batches))
    return {"ratio": statistics.median(ratios), "prompts": prompts, "encoder": "CLIP-L, random weights"}


def _overhead(name: str, shape: Shape, setup: Setup) -> dict[str, Any]:
    """The compilation's own time and memory beside an encoder of this shape, whose tokens are drawn once: the time less
    that of handing them out, the memory less that of one batch."""
    g = torch.Generator().manual_seed(3)
    stock = torch.randn(64 + shape[1], shape[2], generator=g)
    concept_of = torch.nn.functional.normalize(torch.randn(shape[2], generator=g), dim=0)
    mask = torch.ones(shape[1], dtype=torch.bool)
    mask[::77] = False

    def one(prompt: str) -> torch.Tensor:
        at = sum(map(ord, prompt)) % 64
        rows = stock[at : at + shape[1]].clone()
        if prompt.startswith("unsafe"):
            rows[5:9] += 6 * concept_of
        return rows

    def encode(prompts: list[str]) -> Conditioning:
        tokens = torch.stack([one(p) for p in prompts])
        return Conditioning(tokens.to(setup.device), mask.expand(len(prompts), -1).to(setup.device))

    concept, neutral = _concept(FEW["pairs"]), [f"neutral {i}" for i in range(FEW["neutral"])]
    texts = list(dict.fromkeys([*(t for pair in concept.pairs for t in pair), *neutral, ""]))
    size = SETTINGS.batch_size

    def bare() -> None:
        for i in range(0, len(texts), size):
            encode(texts[i : i + size])

    with _peak() as alone:
        given = min(_time(bare, setup.device) for _ in range(2))
    with _peak() as peak:
        whole = _time(lambda: compile_many([concept], encode, neutral), setup.device)
    seconds = max(0.0, whole - given)
    return {
        "encoder": name,
        "shape": list(shape[1:]),
        "prompts": len(texts),
        "seconds": seconds,
        "ms_a_prompt": 1e3 * seconds / len(texts),
        "peak_mb": max(0.0, peak[0] - alone[0]) / 2**20,
        "bytes_of_a_prompt": 4 * shape[1] * shape[2],
    }


@contextmanager
def _peak(every: float = 0.005) -> Iterator[list[float]]:
    """Bytes by which the process grows at most meanwhile, looked at again and again."""
    gc.collect()
    start, found, done = _resident(), [0.0], threading.Event()

    def look() -> None:
        while not done.wait(every):
            found[0] = max(found[0], _resident() - start)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield found
    finally:
        done.set()
        looking.join()
        found[0] = max(found[0], _resident() - start)


def _resident() -> float:
    """Bytes of memory that the process holds now; the most it ever held where the system does not say."""
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def rows() -> dict[str, Any]:
    """How many prompts the text encoder reads for the bundled concepts, all at once and each alone."""
    recipes = Library().recipes()
    halves = neutral_halves(neutral_prompts(), SETTINGS)
    shared = {t for texts in (*halves, filling(halves[0])) for t in texts} | {""}
    own = {c.name: set(Plan.of(c, SETTINGS).texts()) for c in recipes}
    each = {name: len(shared | texts) + len(PROBES) for name, texts in own.items()}
    excluding = [c.name for c in recipes if c.kind == "exclude"]
    return {
        "all": len(shared.union(*own.values())) + len(PROBES),
        "all_exclude": len(shared.union(*(own[n] for n in excluding))) + len(PROBES),
        "mean": round(statistics.mean(each.values())),
        "most": max(each.values()),
        "each": each,
    }


def _import(rounds: int) -> float:
    """Median milliseconds to import the package in a fresh interpreter that has imported torch, its bytecode kept as
    of anything that is installed."""
    with tempfile.TemporaryDirectory() as kept:
        around = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": kept}
        seen = [
            float(
                subprocess.run(
                    [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, env=around
                ).stdout
            )
            for _ in range(rounds + 1)
        ]
    return statistics.median(seen[1:]) * 1e3  # the first writes the bytecode
