"""One process's part of a run: takes units that nobody has, paints, judges and writes them down, until all is done."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saferegion.core.errors import SafeRegionError
from saferegion.learn.settings import Progress

from .judges import Judge, judge_of, judged
from .painters import Outcome, Painter, painter_of
from .prompts import Task, tasks_of
from .settings import Arm, EvaluationError, Run
from .store import Store

WAIT = 0.2
"""Seconds between two looks at what others have done, where there is nothing left to take."""


@dataclass(frozen=True)
class Place:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Place:
        """As ``accelerate launch``, ``torchrun`` and Slurm say it. Raises EvaluationError: it makes no sense."""
        for rank, count in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
            if os.environ.get(rank) and os.environ.get(count):
                try:
                    found = cls(int(os.environ[rank]), int(os.environ[count]))
                except ValueError as error:
                    raise EvaluationError(f"{rank} and {count} must be whole numbers.") from error
                if not 0 <= found.rank < found.count:
                    raise EvaluationError(f"{rank} is {found.rank} of {count} {found.count}: start it anew.")
                return found
        return cls()


@dataclass(frozen=True)
class Unit:
    """Tasks of one arm that are painted at once, always the same ones. ``number``: its place among all."""

    number: int
    arm: Arm
    tasks: tuple[Task, ...]

    @property
    def name(self) -> str:
        return f"{self.arm.name}/{self.tasks[0].name}+{len(self.tasks)}"


def units_of(run: Run) -> list[Unit]:
    """Every unit of a run, arm by arm."""
    tasks = tasks_of(run)
    parts = [tuple(tasks[i : i + run.batch]) for i in range(0, len(tasks), run.batch)]
    each = [(arm, part) for arm in run.arms for part in parts]
    return [Unit(i, arm, part) for i, (arm, part) in enumerate(each)]


def work(run: Run, folder: Path, place: Place | None = None, progress: Progress | None = None) -> Store:
    """Work in a run's folder until all of it is done, by whomever.

    Args:
        run: what is painted and judged. folder: of the run.
        place: of this process (default: as its environment says). progress: called with pictures done and in all.

    Raises:
        EvaluationError: the folder is of another run or in use, the model or a judge cannot be had, the disk is full.
    """
    place = place or Place.here()
    torch.set_num_threads(run.threads)
    units = units_of(run)
    store = Store(folder, run.plain(), place.rank)
    told = _Told(units, store, progress)
    mine = [*units[place.rank :: place.count], *(u for u in units if u.number % place.count != place.rank)]
    worker: _Worker | None = None
    try:
        while True:
            left = [u for u in mine if u.name not in store.done]
            if not left:
                return store
            taken = 0
            for unit in left:
                if not store.claim(unit.number):
                    continue
                try:
                    store.refresh()
                    if unit.name in store.done:
                        continue
                    worker = worker or _Worker(run, store)
                    store.add(unit.name, worker.rows(unit))
                    taken += 1
                    store.refresh()
                finally:
                    store.release(unit.number)
                told()
            if not taken:
                time.sleep(WAIT)
                store.refresh()
                told()
    except BaseException:
        store.close()
        raise


class _Told:
    """Tells how many pictures are done, by whomever."""

    def __init__(self, units: Sequence[Unit], store: Store, progress: Callable[[int, int], None] | None) -> None:
        self.sizes = {u.name: len(u.tasks) for u in units}
        self.store, self.progress = store, progress

    def __call__(self) -> None:
        if self.progress is not None:
            done = sum(self.sizes.get(name, 0) for name in self.store.done)
            self.progress(done, sum(self.sizes.values()))


class _Worker:
    """Model and judges of one process."""

    def __init__(self, run: Run, store: Store) -> None:
        self.run, self.store = run, store
        self.judges: Mapping[str, Judge] = {j.name: judge_of(j) for j in run.judges}

        @contextmanager
        def compiling() -> Iterator[None]:
            store.compiling()
            try:
                yield
            finally:
                store.compiled()

        self.painter: Painter = painter_of(run, compiling)

    def rows(self, unit: Unit) -> list[dict[str, Any]]:
        """What is written down of a unit."""
        outcomes = self.painter.paint(unit.arm, unit.tasks)
        rows = [_row(unit.arm, t, o) for t, o in zip(unit.tasks, outcomes, strict=True)]
        there = [i for i, o in enumerate(outcomes) if o.picture is not None]
        if there:
            self._judge(rows, there, outcomes, unit)
            if self.run.keep:
                for i in there:
                    rows[i]["file"] = self._keep(unit, i, outcomes[i])
        return rows

    def _judge(self, rows: list[dict[str, Any]], there: list[int], outcomes: Sequence[Outcome], unit: Unit) -> None:
        shapes = {o.picture.shape for o in outcomes if o.picture is not None}
        for shape in sorted(shapes):
            which = [i for i in there if (p := outcomes[i].picture) is not None and p.shape == shape]
            pictures = np.stack([p for i in which if (p := outcomes[i].picture) is not None])
            texts = [unit.tasks[i].prompt.text for i in which]
            for name, judge in self.judges.items():
                for i, (answers, error) in zip(which, _answers(judge, pictures, texts), strict=True):
                    rows[i]["answers"][name] = answers
                    if error:
                        rows[i]["unjudged"][name] = error

    def _keep(self, unit: Unit, at: int, outcome: Outcome) -> str:
        from PIL import Image

        assert outcome.picture is not None
        path = Path("pictures") / f"{unit.number:06d}-{at:03d}.png"
        whole = self.store.folder / path
        part = whole.with_suffix(f".{self.store.rank}.part")
        try:
            whole.parent.mkdir(exist_ok=True)
            Image.fromarray(outcome.picture).save(part, "PNG")
            os.replace(part, whole)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise EvaluationError(
                f"{self.store.folder} cannot be written to ({error.strerror}): make room and start the same command "
                "again; nothing that was done is lost."
            ) from error
        return str(path)


def _answers(judge: Judge, pictures: np.ndarray, texts: Sequence[str]) -> list[tuple[dict[str, Any], str]]:
    """For each picture the answers, and why there are none. A judge that fails on many is asked of each alone."""
    try:
        return [(found, "") for found in judged(judge, pictures, texts)]
    except Exception as error:
        if len(pictures) == 1:
            kind = "" if isinstance(error, SafeRegionError) else f"{type(error).__name__}: "
            return [({}, f"{kind}{error}"[:300])]
    return [found for i in range(len(pictures)) for found in _answers(judge, pictures[i : i + 1], texts[i : i + 1])]


def _row(arm: Arm, task: Task, outcome: Outcome) -> dict[str, Any]:
    picture = outcome.picture
    return {
        "arm": arm.name,
        "group": task.prompt.group,
        "prompt": task.prompt.name,
        "seed": task.seed,
        "outcome": outcome.outcome,
        "error": outcome.error,
        "moved": outcome.moved,
        "opened": list(outcome.opened),
        "picture": "" if picture is None else hashlib.sha256(picture.tobytes()).hexdigest(),
        "answers": {},
        "unjudged": {},
    }
