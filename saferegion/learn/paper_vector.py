"""Import of the vectors that Li et al. (WWW 2025, arXiv 2505.15427) publish: c' = c + β·(b ⊗ a)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch

from ..core.writing import write_whole
from ..core.direction import Direction, Direction
from ..core.errors import DirectionFileError, SafeRegionError

LARGEST = 64 * 2**20
WIDEST = 2**20
"""Most numbers in one tensor: a few bytes can claim to be any number of them."""
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
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DirectionFileError(f"{path.name} cannot be read: {error.strerror or error}.") from None
    if size > LARGEST:
        raise DirectionFileError(f"{path.name} has {size:,} bytes; a vector of this format has a few thousand.")
    try:
        data = torch.load(str(path), map_location="cpu", weights_only=True)
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
    if not all(t.is_floating_point() and t.layout == torch.strided for t in (a, b)):
        raise DirectionFileError(f"{path.name}: a and b must be plain floating tensors.")
    b, a = b.detach().float().flatten(), a.detach().float().flatten()
    if not bool(torch.isfinite(a).all() and torch.isfinite(b).all()) or float(a.norm()) < 1e-15:
        raise DirectionFileError(f"{path.name}: a or b holds NaN, infinity or nothing but zeros.")
    normal = (-a.double() / a.double().square().sum()).float()
    direction = Direction(normal=normal.unsqueeze(0), shift=-a.unsqueeze(0), weight=b)
    return Direction(
        concept=concept,
        title=title or concept,
        spaces={"tokens": direction},
        encoder=None,
        method="imported",
        window=window,
        licence=licence,
    )


def _words(names: Mapping[str, object]) -> str:
    return ", ".join(repr(n[:40]) for n in sorted(names)[:6]) or "nothing"


def export_paper_vector(directions: Direction, path: str | Path) -> Path:
    """Write the two tensors ``b`` [1, L, 1] and ``a`` [1, 1, D] that the paper's code adds as β·(b ⊗ a).

    Raises:
        SafeRegionError: more than one half-space, which this format cannot hold, or no token space.
        OSError: the file cannot be written; nothing is left behind.
    """
    direction = directions.spaces.get("tokens")
    if direction is None or direction.facets != 1:
        raise SafeRegionError(
            f"'{directions.concept}' is not one direction in one token space; this format holds only that."
        )
    weight = torch.ones(direction.period) if direction.weight is None else direction.weight
    buffer = io.BytesIO()
    torch.save({"b": weight.reshape(1, -1, 1).clone(), "a": -direction.shift.reshape(1, 1, -1)}, buffer)
    write_whole(Path(path), buffer.getvalue())
    return Path(path)
