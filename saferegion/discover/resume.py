"""A broken run goes on: one file, written whole or not at all, with a checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ..core.errors import DiscoverError
from ..core.writing import write_whole

Tensor = torch.Tensor
FORMAT = "saferegion-discovery/2"
_SAMPLES = 16


def told_apart(parameters: Iterable[Tensor]) -> str:
    """SHA-256, hex, of shapes and a few numbers of each tensor: tells one model's weights from another's."""
    digest = hashlib.sha256()
    for p in parameters:
        flat = p.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].float().cpu()
        digest.update(f"{tuple(p.shape)}{some.tolist()}".encode())
    return digest.hexdigest()


@dataclass
class Kept:
    """What a run leaves behind: ``tensors`` by name and ``told``, plain values; ``key`` says which run it is."""

    path: Path | None
    key: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    told: dict[str, object] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path | None, key: str) -> Kept:
        """What a run left at ``path``, or nothing.

        Raises:
            DiscoverError: the file is no checkpoint, damaged, or of another run.
        """
        new = cls(None if path is None else Path(path), key)
        if new.path is None or not new.path.exists():
            return new
        try:
            with safe_open(str(new.path), framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != FORMAT or metadata.get("checksum") != _checksum(tensors, metadata["told"]):
                raise ValueError
            told = json.loads(metadata["told"])
            if not isinstance(told, dict):
                raise ValueError
        except (SafetensorError, OSError, ValueError, KeyError):
            raise DiscoverError(
                f"{new.path.name} is no checkpoint of a discovery, or a damaged one: delete it and start again."
            ) from None
        if told.get("key") != key:
            raise DiscoverError(
                f"{new.path.name} belongs to another run (other recipe, prompts, settings, model or encoder): delete "
                "it or name another file."
            )
        new.tensors, new.told = tensors, told
        return new

    def save(self, tensors: Mapping[str, Tensor], **told: object) -> None:
        """Keep these tensors and values beside those kept already, under their names."""
        self.tensors = {**self.tensors, **{k: v.detach().cpu().contiguous() for k, v in tensors.items()}}
        self.told = {**self.told, **told, "key": self.key}
        if self.path is not None:
            text = json.dumps(self.told)
            metadata = {"format": FORMAT, "told": text, "checksum": _checksum(self.tensors, text)}
            write_whole(self.path, to_bytes(self.tensors, metadata=metadata))


def _checksum(tensors: Mapping[str, Tensor], told: str) -> str:
    digest = hashlib.sha256(told.encode())
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        digest.update(f"{name}{t.dtype}{tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
