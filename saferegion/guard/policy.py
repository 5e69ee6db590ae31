"""An operator's policy: what is kept out for everybody, and what else a host may do. Users can add, never take away.

It is read once, at the start of a host, from a file that no option, request or workflow can name;
:mod:`saferegion.guard.policy_file` reads it, :mod:`saferegion.guard.enforce` holds the doors to it.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..core.direction import Direction
from ..core.errors import PolicyError, SafeRegionError
from ..learn.recipes import Concept
from .presets import NORMAL, PRESETS
from .selection import Choice, Selection

VARIABLE = "SAFE_REGION_POLICY"
"""Environment variable that names the file."""
FLAG = "--safe-region-policy"
"""Flag of the webui's command line that does."""

GUARD, REFUSE, LOG = "guard", "refuse", "log"
ACTIONS = (LOG, GUARD, REFUSE)
"""What becomes of a prompt that says a concept, from the mildest."""
GO_ON, CLOSE = "go-on", "close"
"""What becomes of requests while the audit log cannot be written."""


@dataclass(frozen=True)
class Rule:
    """One concept that a policy is about.

    Attributes:
        name: as the library has it. strength: least strength at which it acts. preset: mildest borders it has.
        action: one of :data:`ACTIONS`.
        concept: what the file of that name held when the policy was read.
    """

    name: str
    strength: float = 1.0
    preset: str = NORMAL
    action: str = GUARD
    concept: Concept | Direction | None = field(default=None, compare=False, repr=False)

    @property
    def choice_name(self) -> str:
        """What a guard calls it."""
        return Choice(self.concept or self.name).name

    @property
    def least(self) -> float:
        """Strength at which it acts where a user asks for nothing."""
        return 0.0 if self.action == LOG else self.strength


@dataclass(frozen=True)
class Inputs:
    """What is not text and may still be painted from.

    ``loras``: SHA-256 of the files that may be used; None: any.
    """

    image_prompts: bool = False
    init_images: bool = False
    loras: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class Routes:
    """Which addresses of a host's server answer, as patterns with ``*``: those of ``allowed`` without ``refused``."""

    allowed: tuple[str, ...] = ("*",)
    refused: tuple[str, ...] = ()

    def allow(self, path: str) -> bool:
        """Whether a path of an address may be asked."""
        plain = "/" + "/".join(part for part in path.split("/") if part not in ("", "."))

        def among(patterns: tuple[str, ...]) -> bool:
            return any(fnmatch.fnmatchcase(plain, p) or fnmatch.fnmatchcase(plain + "/", p) for p in patterns)

        return among(self.allowed) and not among(self.refused)


@dataclass(frozen=True)
class LogSettings:
    """Where the audit log goes, what it says, and what happens where it cannot be written.

    Attributes:
        file: None: no log is kept. prompts: whether prompts are written out; else a salted hash of each.
        megabytes: at which a new file begins. kept: older files that stay. when_full: ``close`` or ``go-on``.
    """

    file: Path | None = None
    prompts: bool = False
    megabytes: int = 64
    kept: int = 10
    when_full: str = CLOSE


@dataclass(frozen=True)
class Pinned:
    """A file as it was when the policy was read."""

    path: Path
    digest: str
    stamp: tuple[int, ...]

    @classmethod
    def of(cls, path: Path) -> Pinned:
        """Raises PolicyError: it cannot be read."""
        try:
            before = stamp_of(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise PolicyError(f"{path} cannot be read: {error.strerror or error}.") from None
        return cls(path, digest, before)

    def changed(self) -> bool:
        """Whether it is another file now, or none."""
        try:
            return stamp_of(self.path) != self.stamp
        except OSError:
            return True


def stamp_of(path: Path) -> tuple[int, ...]:
    """Changes with every change of a file's content, also where its time is set back. Raises OSError."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@dataclass(frozen=True)
class Policy:
    """All that a policy file says.

    Attributes:
        rules: concepts. negative: whether negative prompts are held to them as well.
        minors: whether an encoder without the minors baseline is refused.
        contact: whom users can ask, shown with every refusal.
        flags: ``refuse`` or ``warn``: what becomes of a host that was started with flags that open it.
        digest: SHA-256 of the file. pinned: files that may not change while a host runs.
        warnings: sentences for the operator.
    """

    rules: tuple[Rule, ...]
    negative: bool = False
    minors: bool = True
    inputs: Inputs = Inputs()
    routes: Routes = Routes()
    log: LogSettings = LogSettings()
    contact: str = ""
    flags: str = REFUSE
    digest: str = ""
    path: Path | None = None
    pinned: tuple[Pinned, ...] = ()
    warnings: tuple[str, ...] = ()

    def rule(self, name: str) -> Rule | None:
        """Of a concept by its name in the library or in a guard."""
        return next((r for r in self.rules if name in (r.name, r.choice_name)), None)


def effective(policy: Policy, selection: Selection | None = None, by_name: bool = False) -> Selection:
    """What acts: all that the policy wants, and what the user's ``selection`` adds to it.

    A concept of both has the greater strength and the nearer borders. It acts as the policy says even where the user
    takes another mode for it, which then acts besides. ``by_name``: choices name concepts as the library does.

    Raises:
        SafeRegionError: a concept of the user's own has the name of one of the policy's.
    """
    wanted = selection or Selection()
    found: list[Choice] = []
    added: dict[str, Choice] = {}
    for choice in wanted.choices:
        rule = policy.rule(choice.name)
        if rule is not None and not isinstance(choice.concept, str) and choice.concept != rule.concept:
            raise SafeRegionError(
                f"'{choice.name}' is a concept of this host's policy; give your own concept another name."
            )
        if rule is None or choice.mode != "project":
            found.append(choice)
        else:
            added[rule.name] = choice
    for rule in policy.rules:
        users = added.get(rule.name)
        strength = max(rule.least, users.strength if users else 0.0)
        preset = stricter(rule.preset, (users.preset or wanted.preset) if users else rule.preset)
        concept = rule.name if by_name else rule.concept or rule.name
        found.append(Choice(concept, strength, "project", preset, first=True))
    return Selection(tuple(found), wanted.preset)


def stricter(a: str, b: str) -> str:
    """Of two presets, the one with the nearer borders."""
    return min(a, b, key=PRESETS.__getitem__)


def policy_path(
    flag: str | os.PathLike[str] | None = None, environment: Mapping[str, str] | None = None
) -> Path | None:
    """The file that a flag or the environment names; None: no policy.

    Raises:
        PolicyError: they name two different ones, or an empty one.
    """
    named = (os.environ if environment is None else environment).get(VARIABLE)
    texts = [os.fspath(t) for t in (flag, named) if t is not None]
    if any(not t.strip() for t in texts):
        raise PolicyError(f"{FLAG} or {VARIABLE} is empty: name the policy file, or take it away.")
    paths = {os.path.realpath(os.path.expanduser(t)) for t in texts}
    if len(paths) > 1:
        raise PolicyError(
            f"{FLAG} names {texts[0]} and {VARIABLE} names {texts[1]}: two policies; take one of them away."
        )
    return Path(paths.pop()) if paths else None
