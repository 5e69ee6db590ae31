"""Import of the vectors that Li et al. (WWW 2025, arXiv 2505.15427) publish: c' = c + β·(b ⊗ a)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from ..core.direction import Direction, Meta
from ..core.errors import DirectionFileError, SafeRegionError
from ..core.file_format import LARGEST_STEP
from ..core.movers import Offset
from ..core.writing import read_whole, write_whole

LARGEST = 64 * 2**20
WIDEST = 2**20
"""Most numbers in one tensor: a few bytes can claim to be any number of them."""
MOST_PARTS = 1000
RATIO = 1000
"""Parts of a zip that grow by more are no numbers; torch itself packs none."""
WINDOW = (0.4, 1.0)
"""Part of the sampling in which the paper's code applies its vector: steps 20 to 50 of 50."""


def import_paper_vector(
    path: str | Path, concept: str, *, title: str = "", window: tuple[float, float] = WINDOW, licence: str = ""
) -> Direction:
    """Read a published ``.pth``: two float tensors, ``b`` [1, L, 1] and ``a`` [1, 1, D].

    The result steers (it has no border): mode ``steer`` at strength β adds β·b_t·a to token t. It carries no
    fingerprint, as the file does not say which encoder it was made for.

    Raises:
        DirectionFileError: not such a file; it is read with ``weights_only=True``, so nothing in it can run.
    """
    path = Path(path)
    raw = read_whole(path, LARGEST, DirectionFileError, "a vector of this format has a few thousand")
    _check_zip(path.name, raw)
    try:
        data = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever a damaged or hostile pickle makes it raise
        raise DirectionFileError(
            f"{path.name} is not a plain file of tensors ({type(error).__name__}); it was not read."
        ) from None
    if not isinstance(data, dict):
        raise DirectionFileError(f"{path.name} must hold the two tensors 'b' and 'a'.")
    found = {str(k).rsplit(".", 1)[-1]: v for k, v in data.items()}
    b, a = found.get("b"), found.get("a")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        raise DirectionFileError(f"{path.name} must hold the two tensors 'b' and 'a'; it holds {_words(found)}.")
    if (
        b.ndim != 3
        or b.shape[0] != 1
        or b.shape[2] != 1
        or a.ndim != 3
        or a.shape[:2] != (1, 1)
        or 0 in (*a.shape, *b.shape)
        or max(a.numel(), b.numel()) > WIDEST
    ):
        raise DirectionFileError(
            f"{path.name}: b must be [1, tokens, 1] and a [1, 1, width]; got {list(b.shape)} and {list(a.shape)}."
        )
    if any(t.is_meta for t in (a, b)):
        raise DirectionFileError(f"{path.name}: a and b are meta tensors, which hold no numbers; ask for another file.")
    if not all(t.is_floating_point() and t.layout == torch.strided for t in (a, b)):
        raise DirectionFileError(f"{path.name}: a and b must be plain floating tensors.")
    b, a = b.detach().float().flatten(), a.detach().float().flatten()
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()) or float(a.norm()) < 1e-15:
        raise DirectionFileError(f"{path.name}: a or b holds NaN, infinity or nothing but zeros.")
    if float(a.abs().max()) * float(b.abs().max()) > LARGEST_STEP:
        raise DirectionFileError(f"{path.name}: b times a is larger than tokens can be.")
    return Direction(
        concept=concept,
        encoder=None,
        detector=None,
        movers={"tokens": Offset(b, a, window)},
        meta=Meta(title=title or concept, method="imported", licence=licence),
    )


def _check_zip(name: str, raw: bytes) -> None:
    """Raises DirectionFileError: the parts of a zip say that they are larger than any vector, inflated."""
    if raw[:2] != b"PK":
        return
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            parts = archive.infolist()
    except Exception as error:  # whatever a damaged or hostile zip makes it raise
        raise DirectionFileError(f"{name} is a damaged zip ({type(error).__name__}); it was not read.") from None
    if len(parts) > MOST_PARTS or sum(p.file_size for p in parts) > LARGEST:
        raise DirectionFileError(f"{name} would be more than {LARGEST:,} bytes when unpacked; it was not read.")
    if any(p.file_size > RATIO * p.compress_size + 2**16 for p in parts):
        raise DirectionFileError(f"{name} is packed too tightly for a vector of this format; it was not read.")


def _words(names: Mapping[str, object]) -> str:
    return ", ".join(repr(n[:40]) for n in sorted(names)[:6]) or "nothing"


def export_paper_vector(direction: Direction, path: str | Path) -> Path:
    """Write the two tensors ``b`` [1, L, 1] and ``a`` [1, 1, D] that the paper's code adds as β·(b ⊗ a).

    Raises:
        SafeRegionError: more than one direction, which this format cannot hold, or no token space.
        OSError: the file cannot be written; nothing is left behind.
    """
    mover = direction.movers.get("tokens")
    if mover is None or mover.facets != 1:
        raise SafeRegionError(
            f"'{direction.concept}' is not one direction in one token space; this format holds only that."
        )
    if isinstance(mover, Offset):
        b, a = mover.b, mover.a
    else:
        b, a = torch.ones(mover.mean.shape[1]), -mover.displacement[0]
    buffer = io.BytesIO()
    torch.save({"b": b.reshape(1, -1, 1).clone(), "a": a.reshape(1, 1, -1).clone()}, buffer)
    write_whole(Path(path), buffer.getvalue())
    return Path(path)
