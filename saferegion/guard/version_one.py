"""Files of version 1, whose directions asked one pair of vectors to detect and to move: what they become."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from ..core.detector import FURTHEST, Detector
from ..core.direction import Direction, Meta
from ..core.errors import DirectionFileError
from ..core.file_format import Parts
from ..core.fingerprint import Fingerprint
from ..core.movers import HalfSpaces, Mover, Offset
from ..core.readout import Readout, Term, check_tensor
from ..core.spaces import POOLED, is_name

Tensor = torch.Tensor

VERSION_ONE = "saferegion/1"
NOTE = "This direction was converted from a file of version 1: compile the concept anew, which finds and moves more."
MEAN = "_mean"
"""Ending of the spaces in which version 1 kept what it asked of the mean of the tokens."""

_FIELDS = ("normal", "shift", "threshold", "mean", "deviation", "spread", "weight", "inner", "together")
_BORDER = ("threshold", "mean", "deviation", "spread")
_KEY = re.compile(r"([A-Za-z0-9_]{1,64})\.([a-z]{1,16})")
_METHODS = {"closed-form": "compiled", "discovered": "discovered", "imported": "imported"}

Fields = dict[str, Tensor]


def converted(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Direction:
    """A direction from the strings and tensors of a file of version 1.

    Its borders become terms, exactly; its shifts become displacements. It kept no benign mean of the tokens, so that is
    taken to be the point that its own scores say. :data:`NOTE` goes with it.

    Raises:
        DirectionFileError: a string or tensor that is missing, unknown or not what it should be.
    """
    parts = Parts({**metadata, "curve": metadata.get("curve", "[]")}, tensors)
    spaces = _spaces(parts)
    method = parts.text("method")
    if method not in _METHODS:
        raise DirectionFileError(f"method must be one of {', '.join(_METHODS)}; got {method[:40]!r}.")
    known = parts.text("encoder")
    encoder = Fingerprint.parse(known) if known else None
    window = parts.window()
    meta = Meta(
        title=parts.text("title"),
        kind=parts.text("kind"),
        version=parts.whole("version"),
        family=parts.text("family"),
        recipe=parts.text("recipe"),
        method=_METHODS[method],
        seed=parts.whole("seed"),
        calibration=parts.figures(),
        licence=parts.text("licence"),
        curve=parts.curve(),
        note=NOTE,
    )
    concept = parts.text("concept")
    if not all("threshold" in fields for fields in spaces.values()):
        return Direction(concept, encoder, None, _offsets(spaces, window), meta=meta)
    if encoder is None:
        raise DirectionFileError("it has a border, but no fingerprint of the encoder that it looks at.")
    detector = _detector(spaces)
    movers: dict[str, Mover] = {}
    rest: dict[str, Tensor] = {}
    for space in dict.fromkeys(name.removesuffix(MEAN) for name in spaces):
        both = [spaces[n] for n in (space, space + MEAN) if n in spaces]
        rest[space] = _rest(both)
        movers[space] = _half_spaces(both, rest[space])
    return Direction(concept, encoder, detector, movers, rest, meta=meta)


def _spaces(parts: Parts) -> dict[str, Fields]:
    found: dict[str, Fields] = {}
    for name in sorted(parts.left):
        match = _KEY.fullmatch(name)
        if match is None or match[2] not in _FIELDS or not (match[1] == POOLED or is_name(match[1])):
            raise DirectionFileError(f"unknown tensor {name[:60]!r}.")
        found.setdefault(match[1], {})[match[2]] = parts.left.pop(name)
    if not found:
        raise DirectionFileError("it holds no direction.")
    for space, fields in found.items():
        for name in ("normal", "shift"):
            if name not in fields:
                raise DirectionFileError(f"tensor '{space}.{name}' is missing.")
        _check(space, fields)
    return found


def _check(space: str, fields: Fields) -> None:
    for name, tensor in fields.items():
        check_tensor(f"'{space}.{name}'", tensor, 1 if name in ("spread", "weight", "together") else 2)
    v, u = fields["normal"], fields["shift"]
    if u.shape != v.shape:
        raise DirectionFileError(f"'{space}': normal and shift must both be [facets, width].")
    if not bool((((v.double() * u.double()).sum(1) - 1).abs() < 1e-3).all()):
        raise DirectionFileError(f"'{space}': normal·shift must be 1 for every facet.")
    border = [name in fields for name in _BORDER]
    if any(border) != all(border):
        raise DirectionFileError(f"'{space}': threshold, mean, deviation and spread belong together: all or none.")
    if not all(border):
        if {"inner", "together"} & set(fields):
            raise DirectionFileError(f"'{space}': inner and together need a threshold beside them.")
        return
    at, mean, deviation = (fields[n] for n in ("threshold", "mean", "deviation"))
    if not at.shape == mean.shape == deviation.shape or len(at) != len(v) or len(fields["spread"]) != len(v):
        raise DirectionFileError(f"'{space}': threshold must be [{len(v)}, positions], as mean and deviation.")
    if not bool((deviation > 0).all()) or not bool((at > mean).all()):
        raise DirectionFileError(f"'{space}': deviation must be positive and threshold above the benign mean.")
    if "inner" in fields and (fields["inner"].shape != at.shape or not bool((fields["inner"] <= at).all())):
        raise DirectionFileError(f"'{space}': inner must have the shape of threshold and lie at or below it.")
    if "weight" in fields and len(fields["weight"]) != at.shape[1]:
        raise DirectionFileError(f"'{space}': weight must be [positions], as many as threshold has.")
    if "together" in fields and len(fields["together"]) != len(v):
        raise DirectionFileError(f"'{space}': together must be [{len(v)}].")


def _offsets(spaces: Mapping[str, Fields], window: tuple[float, float]) -> dict[str, Mover]:
    found: dict[str, Mover] = {}
    for space, fields in spaces.items():
        if "threshold" in fields or len(fields["shift"]) != 1 or space.endswith(MEAN):
            raise DirectionFileError("it is of version 1 and has a border in some spaces only; compile it anew.")
        found[space] = Offset(fields.get("weight", torch.ones(1)).clone(), -fields["shift"][0], window)
    return found


def _detector(spaces: Mapping[str, Fields]) -> Detector:
    terms: list[Term] = []
    thresholds: list[float] = []
    place: dict[str, list[int]] = {}
    for name, fields in spaces.items():
        space = name.removesuffix(MEAN)
        reduce = "mean" if name.endswith(MEAN) else "pooled" if name == POOLED else "token"
        size = fields["deviation"].double().mean(1)
        over = (fields["threshold"] - fields["mean"]).double() / size[:, None]
        for f in range(len(size)):
            least = min(float(over[f].min()), FURTHEST)
            weight = fields["normal"][f].double() / size[f]
            if float(over[f].min()) < FURTHEST:  # the border is the same at every position
                offset = fields["threshold"][f].double() / size[f] - least
            else:  # a border that nothing was to reach; its score still counts in a sum
                offset = fields["mean"][f].double() / size[f]
            if reduce != "token":
                offset = offset.mean().reshape(1)
            place.setdefault(name, []).append(len(terms))
            terms.append(Term(Readout(space, reduce), weight.float()[None], offset.float()[None]))
            thresholds.append(least)
    joint: list[tuple[int, int]] = []
    sums: list[float] = []
    for name, fields in spaces.items():
        words = place.get(name.removesuffix(MEAN), []) if name.endswith(MEAN) else []
        if "together" not in fields or not words:
            continue
        for f, whole in enumerate(place[name]):
            pairs = [words[f]] if len(words) == len(place[name]) else words
            joint += [(i, whole) for i in pairs]
            sums += [min(float(fields["together"][f]), FURTHEST)] * len(pairs)
    return Detector(tuple(terms), torch.tensor(thresholds), tuple(joint), torch.tensor(sums) if joint else None)


def _rest(both: list[Fields]) -> Tensor:
    """``[L, D]``: the point along the shifts whose scores are the benign means."""
    period = max(f["mean"].shape[1] for f in both)
    at = torch.arange(period)
    v = torch.cat([f["normal"] for f in both]).double()
    u = torch.cat([f["shift"] for f in both]).double()
    mean = torch.cat([f["mean"][:, at % f["mean"].shape[1]] for f in both]).double()
    found: Tensor = (torch.linalg.pinv(v @ u.T) @ mean).T @ u
    return found.float()


def _half_spaces(both: list[Fields], rest: Tensor) -> HalfSpaces:
    rows, targets, deviations = [], [], []
    for fields in both:
        over = (fields["threshold"] - fields["mean"]) / fields["deviation"]
        kept = over.amin(1) < FURTHEST if len(both) > 1 else torch.ones(len(over), dtype=torch.bool)
        u = fields["shift"].double()
        size = u.norm(dim=1)
        length = fields["weight"].double().abs().mean() if "weight" in fields else None
        reach = (fields["threshold"] - fields["mean"]).double().mean(1) if length is None else length.expand(len(u))
        inner = fields.get("inner", fields["threshold"]).double()
        rows.append((u * reach[:, None])[kept])
        targets.append(((inner - fields["mean"]).mean(1) * size)[kept])
        deviations.append((fields["deviation"].double().mean(1) * size)[kept])
    displacement = torch.cat(rows).float()
    if not len(displacement):
        raise DirectionFileError("it is of version 1 and has no border that anything reaches; make it again.")
    unit = displacement.double() / displacement.double().norm(dim=1, keepdim=True)
    mean = (unit @ rest.double().T).float()
    return HalfSpaces(displacement, mean, torch.cat(deviations).float(), torch.cat(targets).float())
