"""Discover a direction through the diffusion model itself: what a prompt brings without saying it.

The border of a compiled direction is drawn by words. A volcano brings fire without a word for it, and only the
diffusion model knows. It is asked in four steps, with no labels, no pictures and no list of associations; Δ is what
the concept adds to a prompt (the closed form of :mod:`saferegion.fit`), d(x, c) = ε(x, c − κΔ) and ε(x, c + κΔ):

1. **Looking** (the implicit classifier). Every neutral prompt is painted, the picture x₀ noised again to x_t, and at
   each place the evidence for the concept is how much better the noise is told with it than without it,

       e(x_t, c) = ‖ε(x_t, c − κΔ) − n‖² − ‖ε(x_t, c + κΔ) − n‖²,

   for a noise n and its opposite, averaged over neighbouring places, its largest over the picture (a concept sits
   somewhere). It is asked in two contexts c, the prompt's own and the mean of the neutral prompts, and the lower answer
   counts: the first cannot see what a prompt implies strongly, the second takes the places that go with a concept for
   the concept. The pictures of the recipe's own pairs set the scale: 0 is the median of the safe ones, 1 of the unsafe
   ones.
2. **Naming**. One picture says little, so the evidence of all pictures is laid to words: the share of a prompt's
   pictures that show the concept is taken for σ(max over tokens t and half-spaces f of w_f·c_t + b_f), by logistic
   regression (multiple-instance learning). The safe sides of the recipe count as showing nothing: what their author
   says is safe, as a fire truck, stays inside however red its pictures are.
3. **Learning**. Δ itself is trained through the frozen denoiser, b·Δ with b by position and both free, on the prompts
   that bring the concept, at states of their own steered trajectories: where the concept is, ε(x_t, c − Δ) is to be
   what the concept's opposite predicts, everywhere else, and for prompts that do not bring it, ε(x_t, c).
   The model then says how far to go, for each half-space of tokens by itself: the shortest of several lengths after
   which pictures no longer show the concept (by the same classifier); and whether what was learned gets there with
   less change of the pictures than the closed form.
4. **Drawing the border**. A prompt is outside where its strongest token is foretold to show the concept in more than
   :data:`BRINGS` of its pictures. Such a prompt is moved as a whole: its mean token, along u = Δ / v·Δ, to the inner
   border, v being the discriminant of prompts against the same prompts with Δ taken off, so that all move by about Δ.

What is found acts in the first :data:`WINDOW` of the sampling, where the picture is laid out; later steps paint details
of what is there, and there Δ would cost content.

:func:`discover_vector` is the method of Li et al. (WWW 2025, arXiv 2505.15427) as published, for comparison, for
vectors to share and for fairness.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from . import geometry
from .conditioning import MEAN, POOLED, TOKENS, Conditioning
from .core.writing import write_whole
from .directions import ConceptDirections, Direction
from .errors import CompileError, DiscoverError
from .fingerprint import fingerprint_of
from .fit import Encode, area, border, compile, discriminant
from .learn.bundled import neutral_prompts
from .learn.recipes import Concept
from .region import digest

Tensor = torch.Tensor
Progress = Callable[[int, int], None]
Told = Callable[[str, float], None]
METHODS = ("region", "vector")
STAGES = ("looking", "naming", "learning", "drawing the border")

SUFFIX = "-discovered"
WINDOW = (0.0, 0.7)
"""Part of the sampling in which a discovered direction acts."""
FAR = 2.0
"""κ: how many times the concept is added and taken off to ask the model about it."""
LEVELS = (0.7, 0.8)
"""Noise levels at which it is asked, as shares of the trained steps: layout is decided there."""
DRAWS = 1
"""Noises a level and picture, each with its opposite: together they tell as much as six of their own."""
PLACE = 3
"""Side, in latent pixels of a map of eight, of what counts as one place."""
PAIRS = 48
"""Most pairs of the recipe that are painted to set the scale."""
BRINGS, CALM = 0.2, 0.15
"""Share of pictures, as foretold, above which a prompt counts as bringing the concept, and below which as not."""
FACETS = 4
"""Half-spaces by which tokens are told: things that bring a concept have little else in common."""
WORDS = 64
"""Tokens of a prompt that are asked, the first that may move."""
CLEARLY = 0.5
"""How far, in deviations of strongest tokens, the border lies above what the recipe calls safe."""
SHARP = 8.0
"""Sharpness of the soft maximum over tokens and half-spaces."""
FADE = 0.02
"""Penalty on the squares of their weights (channels standardised)."""
NAMING = 400
"""Steps of the regression."""
ALONE = 32.0
"""How much more a token's score counts than the prompt's mean: it alone says whether a prompt is outside."""
LACKS = 0.65
"""Least area under the ROC curve of the evidence in pictures of unsafe prompts against safe ones."""
START = 1.5
"""Length, in Δ, that learning starts from."""
LENGTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
"""How far to go, in lengths of the closed form: the first after which the concept is gone is taken."""
GONE = 0.05
"""Share of pictures that may still show the concept then."""
SHOWN = 0.5
"""Scaled evidence from which a picture counts as showing it."""
TRIED = 20
"""Prompts painted for that, of each half-space."""
MASK = 0.5
"""Share of a picture's places, those where the concept shows most, that are to change."""
KEEP = 0.1
"""Weight of what must not change."""
RATE = 0.02
OUTSIDE = 4e-3
"""Share of the prompts that do not bring the concept which the border of a pooled embedding may leave outside."""
CLEAR = 0.8
"""Least share of Δ by which a pooled embedding outside is moved."""
SMALL = 100.0
"""How much larger than logits tokens' scores are written, so that their shifts are small beside Δ when steering."""
NEVER = 1e6
"""Benign deviations: a border that nothing reaches."""
SAVED = 20
"""Steps between two checkpoints."""


class Denoiser(Protocol):
    """What discovery needs of a diffusion model; nothing of a host.

    ``latent_shape`` (C, H, W) of one picture; ``alphas_cumprod`` [steps] float, the trained schedule. ``predict``
    takes x_t [B, C, H, W] float32, t (int or int64 [B]) and a conditioning of B rows, and returns the noise
    [B, C, H, W], differentiable in the conditioning. ``parameters`` are frozen while discovering.
    """

    latent_shape: tuple[int, int, int]
    alphas_cumprod: Tensor

    def predict(self, x_t: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor: ...

    def parameters(self) -> Iterable[Tensor]: ...


def discover(
    concept: Concept,
    encode: Encode,
    denoiser: Denoiser,
    neutral: Sequence[str] | None = None,
    *,
    method: str = "region",
    seed: int = 0,
    steps: int = 160,
    pictures: int = 2,
    sampling_steps: int = 15,
    guidance: float = 4.0,
    batch_size: int = 16,
    closed_form: ConceptDirections | bool = True,
    checkpoint: str | Path | None = None,
    family: str = "",
    progress: Progress | None = None,
    told: Told | None = None,
    stop: Callable[[], bool] | None = None,
    autocast: torch.dtype | None = None,
    recompute: bool = False,
) -> ConceptDirections:
    """Learn what ``concept`` is in the eyes of a diffusion model; see the module.

    Args:
        concept: recipe, kind ``exclude``.
        encode: list of prompts -> :class:`Conditioning`, as for :func:`saferegion.compile`.
        denoiser: the frozen model.
        neutral: prompts to ask it about (None: those bundled); at least 24.
        method: ``region``, or ``vector`` for the published method (:func:`discover_vector`).
        seed: of all noise; the same seed on the same machine gives the same bits, also after an interruption.
        steps: of learning. pictures: painted of each neutral prompt. sampling_steps, guidance: of painting (DDIM).
        batch_size: rows a pass of the denoiser; halved where the device runs out of memory.
        closed_form: the compiled directions of the concept, to start from and to hold in the result's token spaces;
            True: they are compiled here. False: the result holds what was discovered and no border drawn by words.
        checkpoint: file that a broken run goes on from, written every few steps; remove it once the result is kept.
        progress: called with passes of the denoiser done and in all. told: with the stage and the loss of a step.
        stop: asked at every step; once it says True while learning, the best Δ so far is kept.
        autocast: dtype of mixed precision; None: the model's own. recompute: activations are computed again on the
            way back (gradient checkpointing) instead of kept.

    Returns:
        Directions of method ``discovered``, named after the concept with ``-discovered`` appended, with the losses in
        ``curve``. Use them beside the compiled ones: ``SafeRegion([compiled, found])``.

    Raises:
        DiscoverError: the model returns NaN, or lacks the concept, or no neutral prompt brings it; the recipe has no
            contrast; memory ran out. Nothing is returned and nothing written then.
    """
    if method not in METHODS:
        raise DiscoverError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if method == "vector":
        return discover_vector(
            concept, encode, denoiser, seed=seed, steps=steps, family=family, progress=progress, told=told, stop=stop,
            autocast=autocast, recompute=recompute,
        )  # fmt: skip
    if concept.kind != "exclude":
        raise DiscoverError(f"'{concept.name}' is an axis to balance: discover its sides with method 'vector'.")
    if neutral is None:
        neutral = neutral_prompts()
    neutral = [n for n in neutral if n.strip()]
    if len(neutral) < 24:
        raise DiscoverError(f"At least 24 neutral prompts are needed to ask the model about; got {len(neutral)}.")
    for name, value, least in (("steps", steps, 1), ("pictures", pictures, 1), ("sampling_steps", sampling_steps, 2)):
        if value < least:
            raise DiscoverError(f"{name} must be at least {least}; got {value}.")
    compiled = _compiled(concept, encode, neutral, closed_form, family)
    pairs = list(concept.pairs[:: max(1, math.ceil(len(concept.pairs) / PAIRS))])
    asked = len(LEVELS) * DRAWS * 8
    each = 2 * sampling_steps + asked
    tried = len(LENGTHS) * FACETS * TRIED * each  # about half of the most: it ends where the concept is gone
    total = (len(neutral) * pictures + 2 * len(pairs)) * each + 4 * _STATES * sampling_steps
    total += steps * 5 * batch_size + tried
    model = _Model(denoiser, batch_size, progress, total, autocast, recompute)
    key = _key(
        concept, neutral, seed, pictures, sampling_steps, guidance, steps, batch_size, _told_apart(denoiser),
        str(fingerprint_of(encode)), tuple(denoiser.latent_shape), digest(compiled).hex(),
    )  # fmt: skip
    kept = _Kept.open(checkpoint, key)
    tell = told or (lambda stage, loss: None)
    with model.frozen():
        delta = _Shift.of(compiled)
        world = _World(model, encode, seed, sampling_steps, guidance)
        if kept.scores is None:
            kept.scores = _look(world, delta, neutral, pairs, pictures, lambda: tell(STAGES[0], math.nan))
            kept.save()
        scale = _Scale.of(kept.scores, concept)
        tell(STAGES[1], math.nan)
        shown = scale(kept.scores["neutral"]).clamp(0, 1).mean(1)
        named, told_by = _name(world, neutral, list(dict.fromkeys(s for _, s in concept.pairs)), shown)
        brings, calm = told_by > BRINGS, told_by < CALM
        if int(brings.sum()) < 4:
            raise DiscoverError(
                f"Only {int(brings.sum())} of {len(neutral)} neutral prompts bring '{concept.name}' into the picture "
                "without saying it: this model leaves nothing to discover; use the compiled directions."
            )
        if int(calm.sum()) < 8:
            raise DiscoverError(f"Nearly every neutral prompt brings '{concept.name}' into the picture: give others.")
        risky, calmer = ([n for n, b in zip(neutral, mask.tolist(), strict=True) if b] for mask in (brings, calm))
        learned, curve = _learn(world, delta, risky, calmer, steps, kept, tell, stop)
        tell(STAGES[3], math.nan)
        which = next(iter(named.values())).which[brings]
        learned, far, figures = _length(world, scale, delta, learned, risky, which, neutral)
        vectors = _sentences(world, neutral)
        spaces, more = _draw(vectors, named, learned, far, brings, calm, compiled, closed_form is not False)
        if bool((shown < CALM).any()):
            figures["untold.outside"] = round(float((told_by > BRINGS)[shown < CALM].double().mean()), 4)
        figures |= more | {"evidence.area": scale.area}
    model.finish()
    return ConceptDirections(
        concept=concept.name + SUFFIX,
        title=f"{concept.title or concept.name}, by association",
        kind="exclude",
        version=concept.version,
        spaces=spaces,
        encoder=fingerprint_of(encode),
        family=family or compiled.family,
        recipe=concept.digest(neutral),
        method="discovered",
        seed=seed,
        window=WINDOW,
        calibration=figures,
        curve=tuple(curve),
        licence=concept.licence,
    )


def spread(prompts: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of those prompts that say anything, spread over the list."""
    found = [p for p in prompts if p.strip()]
    return found if most >= len(found) else [found[i * len(found) // most] for i in range(most)]


def _compiled(
    concept: Concept, encode: Encode, neutral: Sequence[str], given: ConceptDirections | bool, family: str
) -> ConceptDirections:
    if isinstance(given, ConceptDirections):
        if given.encoder is not None:
            given.encoder.require(fingerprint_of(encode), f"the compiled '{given.concept}'")
        return given
    try:
        return compile(concept, encode, neutral, family=family)
    except CompileError as error:
        raise DiscoverError(str(error)) from None


# -- the shift -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Shift:
    """Δ in every space of a text encoder: ``by[space]`` [D], and ``weight[space]`` [L] by position."""

    by: dict[str, Tensor]
    weight: dict[str, Tensor]

    @classmethod
    def of(cls, compiled: ConceptDirections) -> _Shift:
        by, weight = {}, {}
        for name, d in compiled.spaces.items():
            if name.endswith(MEAN):
                continue
            length = 1.0 if d.weight is None else float(d.weight.mean())
            by[name] = d.shift[0].clone() * length
            weight[name] = torch.ones(d.period)
        return cls(by, weight)

    def longer(self, times: float) -> _Shift:
        """A copy, ``times`` as long."""
        return _Shift({k: times * v for k, v in self.by.items()}, {k: v.clone() for k, v in self.weight.items()})

    def even(self) -> _Shift:
        """The same at every position: what a border of the whole moves prompts by."""
        by = {k: v * float(self.weight[k].mean()) if k in self.weight else v for k, v in self.by.items()}
        return _Shift(by, {k: torch.ones_like(v) for k, v in self.weight.items()})

    def to(self, device: torch.device) -> _Shift:
        return _Shift({k: v.to(device) for k, v in self.by.items()}, {k: v.to(device) for k, v in self.weight.items()})

    def off(self, c: Conditioning, times: float = 1.0) -> Conditioning:
        """``c`` with Δ taken off ``times`` times; a new conditioning, differentiable in Δ."""
        tokens, pooled = c.tokens, c.pooled
        moved = tokens.float()
        for space in c.spaces or TOKENS:
            view = moved[:, space.rows, space.channels]
            weight = self.weight[space.name].to(view.device)
            step = weight[torch.arange(view.shape[1]) % len(weight)].unsqueeze(1) * self.by[space.name].to(view.device)
            if c.movable is not None:
                step = step * c.movable[:, space.rows].to(view.device).unsqueeze(-1)
            if view.shape == moved.shape:
                moved = moved - times * step
            else:
                moved = moved.clone()
                moved[:, space.rows, space.channels] = view - times * step
        if pooled is not None and POOLED in self.by:
            pooled = (pooled.float() - times * self.by[POOLED].to(pooled.device)).to(pooled.dtype)
        return c.replace(moved.to(tokens.dtype), pooled)


# -- the model -----------------------------------------------------------------------------------------------------


class _Model:
    """The denoiser: in batches, counted, frozen, checked."""

    def __init__(
        self, denoiser: Denoiser, batch_size: int, progress: Progress | None, total: int,
        autocast: torch.dtype | None, recompute: bool,
    ) -> None:  # fmt: skip
        self.denoiser, self.batch_size, self.progress, self.total = denoiser, max(1, batch_size), progress, total
        self.autocast, self.recompute, self.done = autocast, recompute, 0
        self.signal = denoiser.alphas_cumprod.detach().double().cpu()
        self.device = next((p.device for p in denoiser.parameters()), denoiser.alphas_cumprod.device)
        self.shape = tuple(denoiser.latent_shape)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        parameters = list(self.denoiser.parameters())
        wanted = [p.requires_grad for p in parameters]
        try:
            for p in parameters:
                if p.requires_grad:
                    p.requires_grad_(False)
            yield
        finally:
            for p, w in zip(parameters, wanted, strict=True):
                if w:
                    p.requires_grad_(True)

    def signal_at(self, t: int) -> tuple[float, float]:
        """√ᾱ_t and √(1 − ᾱ_t)."""
        a = float(self.signal[t])
        return math.sqrt(a), math.sqrt(1 - a)

    def level(self, share: float) -> int:
        return round(share * (len(self.signal) - 1))

    def times(self, steps: int) -> list[int]:
        return torch.linspace(len(self.signal) - 1, 0, steps + 1).round().long().tolist()[:-1]

    def predict(self, x: Tensor, t: int, c: Conditioning) -> Tensor:
        """Noise in ``x`` [B, C, H, W] float32, in batches; finite, or DiscoverError."""
        rows, at = [], 0
        while at < len(x):
            part = slice(at, at + self.batch_size)
            try:
                rows.append(self._pass(x[part], t, rows_of(c, part)))
            except torch.cuda.OutOfMemoryError:
                if torch.is_grad_enabled():  # what was computed is kept for the way back, so halves need as much
                    raise
                if self.batch_size == 1:
                    raise DiscoverError(
                        "The device ran out of memory at one picture a pass; free some first."
                    ) from None
                self.batch_size //= 2
                continue
            at += len(rows[-1])
        self.done += len(x)
        self.tell()
        return torch.cat(rows)

    def _pass(self, x: Tensor, t: int, c: Conditioning) -> Tensor:
        def once(tokens: Tensor, pooled: Tensor | None) -> Tensor:
            with torch.autocast(x.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
                return self.denoiser.predict(x, t, c.replace(tokens, pooled)).float()

        if self.recompute and torch.is_grad_enabled():
            from torch.utils.checkpoint import checkpoint

            eps = checkpoint(once, c.tokens, c.pooled, use_reentrant=False)
        else:
            eps = once(c.tokens, c.pooled)
        if eps.shape != x.shape:
            raise DiscoverError(f"The denoiser returned {list(eps.shape)} for latents {list(x.shape)}.")
        if not bool(torch.isfinite(eps.detach()).all()):
            raise DiscoverError(f"The denoiser returned NaN or infinite values at step {t}; load a working model.")
        return eps

    def tell(self) -> None:
        """Tell how far it is; where a host stops the work, this raises."""
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)

    def finish(self) -> None:
        if self.progress is not None:
            self.progress(self.done, self.done)


def rows_of(c: Conditioning, at: slice | Tensor) -> Conditioning:
    """Some rows of a conditioning."""
    return Conditioning(*(None if t is None else t[at] for t in (c.tokens, c.movable, c.pooled)), c.spaces)


def _noise(shape: tuple[int, ...], count: int, *words: object) -> Tensor:
    """Standard normal [count, *shape] that depends on ``words`` alone, each row on its own number too."""
    seeds = [int.from_bytes(hashlib.sha256(repr((*words, i)).encode()).digest()[:7], "big") for i in range(count)]
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


@dataclasses.dataclass
class _World:
    """What paints and asks."""

    model: _Model
    encode: Encode
    seed: int
    steps: int
    guidance: float

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        with torch.no_grad():
            c = self.encode(list(prompts))
        return c if c.tokens.is_floating_point() else c.replace(c.tokens.float(), c.pooled)

    @torch.no_grad()
    def paint(
        self,
        c: Conditioning,
        empty: Conditioning,
        noise: Tensor,
        states: bool = False,
        late: Conditioning | None = None,
    ) -> Tensor:
        """Latents of ``c`` by deterministic DDIM with classifier-free guidance; or x_t of all steps [S, B, …].
        ``late``: the conditioning after :data:`WINDOW`, where it is another."""
        x, kept = noise.to(self.model.device), []
        times = self.model.times(self.steps)
        nothing = Conditioning(
            *(
                None if t is None else t.expand(len(x), *t.shape[1:])
                for t in (empty.tokens, empty.movable, empty.pooled)
            ),
            empty.spaces,
        )
        for index, t in enumerate(times):
            kept.append(x)
            without = self.model.predict(x, t, nothing)
            now = c if late is None or index < WINDOW[1] * len(times) else late
            eps = without + self.guidance * (self.model.predict(x, t, now) - without)
            a, s = self.model.signal_at(t)
            clean = (x - s * eps) / a
            after, left = self.model.signal_at(times[index + 1]) if index + 1 < len(times) else (1.0, 0.0)
            x = after * clean + left * eps
        return torch.stack(kept) if states else x

    @torch.no_grad()
    def evidence(self, x: Tensor, own: Conditioning, mean: Conditioning, delta: _Shift, *words: object) -> Tensor:
        """[2, levels, B, h, w]: evidence for the concept at each place, in the mean and in the prompt's own context."""
        rows = []
        side = max(1, round(PLACE * min(x.shape[-2:]) / 8))
        contexts = (mean, own)
        for level in LEVELS:
            t = self.model.level(level)
            a, s = self.model.signal_at(t)
            found = [torch.zeros(()), torch.zeros(())]
            for draw in range(DRAWS):
                one = _noise(self.model.shape, len(x), self.seed, "ask", level, draw, *words).to(x.device)
                for n in (one, -one):
                    noised = a * x + s * n
                    for k, c in enumerate(contexts):
                        without = (self.model.predict(noised, t, delta.off(c, FAR)) - n).square().sum(1)
                        given = (self.model.predict(noised, t, delta.off(c, -FAR)) - n).square().sum(1)
                        found[k] = found[k].to(x.device) + without - given
            rows.append(torch.stack([F.avg_pool2d(f.unsqueeze(1), side, stride=1)[:, 0] for f in found]))
        return torch.stack(rows, dim=1).cpu()


# -- 1. looking ------------------------------------------------------------------------------------------------------


def _look(
    world: _World, delta: _Shift, neutral: Sequence[str], pairs: Sequence[tuple[str, str]], pictures: int,
    tell: Callable[[], None],
) -> dict[str, Tensor]:  # fmt: skip
    """Evidence, largest over places: ``neutral`` [N, pictures, 2, levels], ``unsafe`` and ``safe`` [P, 2, levels]."""
    empty = world.conditioning([""])
    average = _average(world, neutral)

    def asked(prompts: Sequence[str], name: str, number: int) -> Tensor:
        found = []
        size = world.model.batch_size
        for at in range(0, len(prompts), size):
            tell()
            part = list(prompts[at : at + size])
            c = world.conditioning(part)
            x = world.paint(c, empty, _noise(world.model.shape, len(part), world.seed, name, number, at))
            mean = _expanded(average, len(part), c)
            found.append(world.evidence(x, c, mean, delta, name, number, at).flatten(3).amax(-1).permute(2, 0, 1))
        return torch.cat(found)

    return {
        "unsafe": asked([u for u, _ in pairs], "unsafe", 0),
        "safe": asked([s for _, s in pairs], "safe", 0),
        "neutral": torch.stack([asked(neutral, "neutral", k) for k in range(pictures)], dim=1),
    }


def _average(world: _World, prompts: Sequence[str]) -> Conditioning:
    """The mean conditioning of some neutral prompts: a context that says nothing in particular."""
    total, count = None, 0
    for at in range(0, min(len(prompts), 256), 32):
        c = world.conditioning(prompts[at : at + 32])
        tokens = c.tokens.float().sum(0, keepdim=True)
        pooled = None if c.pooled is None else c.pooled.float().sum(0, keepdim=True)
        if total is None:
            total = Conditioning(tokens, None, pooled, c.spaces)
        else:
            length = min(total.tokens.shape[1], tokens.shape[1])
            both = total.tokens[:, :length] + tokens[:, :length]
            total = total.replace(both, None if pooled is None or total.pooled is None else total.pooled + pooled)
        count += len(c.tokens)
    if total is None:
        raise DiscoverError("There is no neutral prompt to ask about.")
    return total.replace(total.tokens / count, None if total.pooled is None else total.pooled / count)


def _expanded(average: Conditioning, count: int, like: Conditioning) -> Conditioning:
    tokens = average.tokens.expand(count, -1, -1).to(like.tokens)
    movable = like.movable
    if movable is not None and movable.shape[1] != tokens.shape[1]:
        length = min(movable.shape[1], tokens.shape[1])
        tokens, movable = tokens[:, :length], movable[:, :length]
    pooled = None if average.pooled is None else average.pooled.expand(count, -1).to(like.tokens.device)
    return Conditioning(tokens, movable, pooled, average.spaces)


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Evidence on the scale of the recipe's own pairs."""

    size: Tensor  # [2, levels]
    low: float
    high: float
    area: float

    @classmethod
    def of(cls, scores: dict[str, Tensor], concept: Concept) -> _Scale:
        size = scores["neutral"].flatten(0, 1).std(0).clamp_min(1e-12)
        plain = cls(size, 0.0, 1.0, 0.0)
        unsafe, safe = plain(scores["unsafe"]), plain(scores["safe"])
        shown = area(unsafe, safe)
        low, high = float(safe.median()), float(unsafe.median())
        if shown < LACKS or high <= low:
            raise DiscoverError(
                f"This model does not show '{concept.name}': pictures of unsafe prompts look like it {shown:.0%} of "
                f"the time against safe ones ({LACKS:.0%} is needed); nothing was discovered."
            )
        return cls(size, low, high, round(shown, 4))

    def __call__(self, evidence: Tensor) -> Tensor:
        """[..., 2, levels] -> [...]: levels on one scale, both contexts must agree."""
        return ((evidence / self.size).sum(-1).amin(-1) - self.low) / (self.high - self.low)


# -- 2. naming -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Named:
    """Half-spaces of tokens [F]: a prompt whose strongest token is above ``border`` in one of them is foretold to bring
    the concept in :data:`BRINGS` of its pictures."""

    normal: Tensor  # [F, D]
    border: Tensor  # [F]
    mean: Tensor  # [F] over tokens
    deviation: Tensor  # [F] of the strongest tokens of prompts
    spread: Tensor  # [F] root of Σ_d (v_d c_d)² over tokens
    which: Tensor  # [N] the half-space that each neutral prompt is furthest out of


def _name(
    world: _World, neutral: Sequence[str], safe: Sequence[str], shown: Tensor
) -> tuple[dict[str, _Named], Tensor]:
    """Half-spaces by token space, and what they foretell of the neutral prompts ``[N]``, the mean of the spaces.

    ``shown`` [N]: share of each prompt's pictures that show the concept. ``safe``: prompts that show nothing."""
    rows: dict[str, list[Tensor]] = {}
    prompts = [*neutral, *safe]
    for at in range(0, len(prompts), 32):
        for name, tokens in _tokens(world.conditioning(prompts[at : at + 32])):
            rows.setdefault(name, []).append(tokens)
    target = torch.cat([shown, torch.zeros(len(safe))])
    weight = torch.cat([torch.full((len(neutral),), 0.5 / len(neutral)), torch.full((len(safe),), 0.5 / len(safe))])
    found, told = {}, []
    for name, parts in rows.items():
        found[name], foretold = _regression(parts, target, weight, len(neutral), world.seed, world.model.tell)
        told.append(foretold[: len(neutral)])
    return found, torch.stack(told).mean(0)


def _tokens(c: Conditioning) -> Iterator[tuple[str, Tensor]]:
    """(token space, the first :data:`WORDS` tokens that may move [B, W, D], NaN where there are fewer)."""
    for space in c.spaces or TOKENS:
        view = c.tokens[:, space.rows, space.channels].float().cpu()
        may = torch.ones(view.shape[:2], dtype=torch.bool)
        if c.movable is not None:
            may = c.movable[:, space.rows].cpu()
        kept = view.new_full((len(view), WORDS, view.shape[2]), math.nan)
        for row, tokens, which in zip(kept, view, may, strict=True):
            some = tokens[which][:WORDS]
            row[: len(some)] = some
        yield space.name, kept


@torch.enable_grad()
def _regression(
    parts: list[Tensor], target: Tensor, weight: Tensor, asked: int, seed: int, alive: Callable[[], None]
) -> tuple[_Named, Tensor]:
    """Logistic regression of ``target`` [N] on the strongest token; and what it foretells [N]. Of the prompts, the
    first ``asked`` were painted; the others are safe, and no border is drawn so that one is outside."""
    x = torch.cat(parts)
    mask = x[..., 0].isnan()
    x = x.nan_to_num_(0.0)
    count = (~mask).sum()
    mean = x.sum((0, 1)) / count
    x = (x - mean).masked_fill_(mask.unsqueeze(-1), 0.0)
    deviation = (x.square().sum((0, 1)) / count).sqrt().clamp_min(1e-6)
    x = x / deviation
    width = x.shape[2]
    draw = torch.Generator().manual_seed(seed)
    w = (torch.randn(FACETS, width, generator=draw) * 0.4 / width**0.5).requires_grad_(True)
    b = torch.full((FACETS,), -1.0, requires_grad=True)
    optimiser = torch.optim.Adam([{"params": [w], "lr": 0.16 / width**0.5}, {"params": [b], "lr": 0.02}])

    def scores() -> Tensor:
        return (x @ w.T + b).masked_fill(mask.unsqueeze(-1), -math.inf)

    for step in range(NAMING):
        if step % 20 == 0:
            alive()
        soft = torch.logsumexp(SHARP * scores().flatten(1), 1) / SHARP
        loss = (weight * F.binary_cross_entropy_with_logits(soft, target, reduction="none")).sum()
        loss = loss + FADE * w.square().sum()
        w.grad, b.grad = torch.autograd.grad(loss, (w, b))
        optimiser.step()
    with torch.no_grad():
        size = w.norm(dim=1)
        idle = size < 0.01 * size.amax()  # told nothing: the strongest takes its place, or its shift would be endless
        w[idle], b[idle] = w[size.argmax()].clone(), b[size.argmax()].clone()
        strongest = scores().amax(1)
        normal = w.detach() / deviation
        level = normal @ mean
        apart = strongest.std(0).clamp_min(1e-6)
        usual = math.log(BRINGS / (1 - BRINGS))
        border = (strongest[asked:].amax(0) + CLEARLY * apart).clamp_min(usual)
        spread = (normal.square() @ (mean.square() + deviation.square())).sqrt()
        far, which = (strongest - border).max(1)
        return _Named(normal, level - b.detach() + border, level, apart, spread, which[:asked]), torch.sigmoid(
            far + usual
        )


# -- 3. learning -----------------------------------------------------------------------------------------------------

_STATES = 48


def _learn(
    world: _World, delta: _Shift, risky: list[str], calm: list[str], steps: int, kept: _Kept, tell: Told,
    stop: Callable[[], bool] | None,
) -> tuple[_Shift, list[float]]:  # fmt: skip
    """Train Δ through the frozen denoiser; returns it and the losses."""
    model = world.model
    pick = torch.Generator().manual_seed(world.seed)
    risky = [risky[i] for i in torch.randperm(len(risky), generator=pick)[:_STATES].tolist()]
    calm = [calm[i] for i in torch.randperm(len(calm), generator=pick)[:_STATES].tolist()]
    empty = world.conditioning([""])
    states = {"risky": _states(world, delta, risky, empty, START), "calm": _states(world, delta, calm, empty, 0.0)}
    times = model.times(world.steps)
    early = max(1, math.ceil(WINDOW[1] * len(times)))
    shift = delta.longer(START).to(model.device)
    if kept.tensors:
        kept.restore(shift)
    for p in (*shift.by.values(), *shift.weight.values()):
        p.requires_grad_(True)
    size_of = {k: float(v.abs().mean()) for k, v in delta.by.items()}
    groups = [{"params": [p], "lr": RATE * size_of[k]} for k, p in shift.by.items()]
    groups += [{"params": [p], "lr": RATE} for p in shift.weight.values()]
    optimiser = torch.optim.Adam(groups)
    if kept.tensors:
        kept.restore_optimiser(optimiser)
    size = min(model.batch_size, len(risky), len(calm))
    curve = list(kept.curve)
    for step in range(len(curve), steps):
        if stop is not None and stop():
            break
        draw = torch.Generator().manual_seed(world.seed * 1_000_003 + step + 1)
        k = int(torch.randint(early, (1,), generator=draw))
        i, j = (torch.randperm(len(p), generator=draw)[:size] for p in (risky, calm))
        x, y = states["risky"][k][i].to(model.device), states["calm"][k][j].to(model.device)
        c = world.conditioning([risky[n] for n in i.tolist()])
        d = world.conditioning([calm[n] for n in j.tolist()])
        with torch.no_grad():
            plain, away = model.predict(x, times[k], c), model.predict(x, times[k], delta.off(c, FAR))
            where = _shows(plain - away)
            wanted = plain + where * (away - plain)
            same = model.predict(y, times[k], d)
        optimiser.zero_grad(set_to_none=True)
        with torch.enable_grad():  # one graph at a time: the memory of one pass there and back
            got = model.predict(x, times[k], shift.off(c))
            changed = ((got - wanted).square() * where).mean()
            kept_rest = ((got - wanted).square() * (1 - where)).mean()
            scale = 2.0 ** round(math.log2(got.numel() / 8))  # half precision would lose gradients this small
            ((changed + kept_rest) * scale).backward()
            value = float((changed + kept_rest).detach())
            del got, changed, kept_rest
            calmly = KEEP * (model.predict(y, times[k], shift.off(d)) - same).square().mean()
            (calmly * scale).backward()
            value += float(calmly.detach())
        for p in (*shift.by.values(), *shift.weight.values()):
            if p.grad is not None:
                p.grad /= scale
        optimiser.step()
        if not math.isfinite(value):
            raise DiscoverError(f"The loss became {value} at step {step + 1}; use a smaller learning run or float32.")
        curve.append(value)
        tell(STAGES[2], value)
        if (step + 1) % SAVED == 0 and step + 1 < steps:
            kept.keep(shift, optimiser, curve)
    learned = _Shift(
        {k: v.detach().cpu() for k, v in shift.by.items()}, {k: v.detach().cpu() for k, v in shift.weight.items()}
    )
    return learned, curve


def _states(world: _World, delta: _Shift, prompts: Sequence[str], empty: Conditioning, off: float) -> Tensor:
    """x_t of every step [S, N, C, H, W], on the CPU, of prompts painted with Δ taken off."""
    found = []
    size = world.model.batch_size
    for at in range(0, len(prompts), size):
        part = prompts[at : at + size]
        c = delta.off(world.conditioning(part), off)
        noise = _noise(world.model.shape, len(part), world.seed, "learn", off, at)
        found.append(world.paint(c, empty, noise, states=True).cpu())
    return torch.cat(found, dim=1)


def _shows(difference: Tensor) -> Tensor:
    """Where the concept is: 1 at the :data:`MASK` of places [B, 1, H, W] that it changes most, else 0."""
    size = max(1, round(PLACE * min(difference.shape[-2:]) / 8)) | 1
    strength = F.pad(difference.square().sum(1, keepdim=True), (size // 2,) * 4, mode="replicate")
    strength = F.avg_pool2d(strength, size, stride=1)
    least = torch.quantile(strength.flatten(1), 1 - MASK, dim=1)
    return (strength >= least[:, None, None, None]).to(difference.dtype)


def _length(
    world: _World, scale: _Scale, delta: _Shift, learned: _Shift, risky: list[str], which: Tensor,
    neutral: Sequence[str],
) -> tuple[_Shift, Tensor, dict[str, float]]:  # fmt: skip
    """What to move along, as long as the closed form, and how many times for each prompt of ``risky`` ``[R]``; those of
    one half-space, ``which`` [R], go equally far. The model judges its own pictures."""
    average, empty = _average(world, neutral), world.conditioning([""])
    pick = torch.Generator().manual_seed(world.seed + 1)
    learned = learned.even()
    sizes = [math.sqrt(sum(float(v.square().sum()) for v in shift.by.values())) for shift in (learned, delta)]
    bases = (learned.longer(sizes[1] / max(sizes[0], 1e-12)), delta)  # of one length

    def painted(prompts: list[str], group: int, shift: _Shift | None) -> tuple[float, Tensor]:
        told, latents = [], []
        size = world.model.batch_size
        for at in range(0, len(prompts), size):
            c = world.conditioning(prompts[at : at + size])
            noise = _noise(world.model.shape, len(c.tokens), world.seed, "length", group, at)
            x = world.paint(c if shift is None else shift.off(c), empty, noise, late=c)
            mean = _expanded(average, len(x), c)
            told.append(world.evidence(x, c, mean, delta, "length", group, at).flatten(3).amax(-1).permute(2, 0, 1))
            latents.append(x.cpu())
        return float((scale(torch.cat(told)) > SHOWN).double().mean()), torch.cat(latents)

    far = torch.zeros(len(bases), len(risky))
    shares, changed = torch.zeros(len(bases) + 1), torch.zeros(len(bases))
    for group in range(FACETS):
        members = (which == group).nonzero()[:, 0]
        if not len(members):
            continue
        some = [risky[i] for i in members[torch.randperm(len(members), generator=pick)[:TRIED]].tolist()]
        part = len(members) / len(risky)
        before, plain = painted(some, group, None)
        shares[-1] += part * before
        for k, base in enumerate(bases):
            tried = []
            for times in LENGTHS:
                share, x = painted(some, group, base.longer(times))
                tried.append((share, times, float((x - plain).square().mean())))
                if share <= GONE:
                    break
            share, times, change = min(tried)
            far[k, members] = times
            shares[k] += part * share
            changed[k] += part * change
    k = int((changed + torch.where(shares[:-1] <= 2 * GONE, 0.0, 1e3)).argmin())
    figures = {
        "shown.before": round(float(shares[-1]), 4), "shown.after": round(float(shares[k]), 4),
        "change": round(float(changed[k]), 6), "length": round(float(far[k].mean()), 4), "learned": float(k == 0),
    }  # fmt: skip
    return bases[k], far[k], figures


# -- 4. drawing the border -------------------------------------------------------------------------------------------


def _sentences(world: _World, prompts: Sequence[str]) -> dict[str, Tensor]:
    """One vector a prompt ``[N, D]`` by space."""
    vectors: dict[str, list[Tensor]] = {}
    for at in range(0, len(prompts), 32):
        for name, rows in _vectors(world.conditioning(prompts[at : at + 32])):
            vectors.setdefault(name, []).append(rows)
    return {name: torch.cat(rows) for name, rows in vectors.items()}


def _draw(
    vectors: dict[str, Tensor], named: dict[str, _Named], shift: _Shift, far: Tensor, brings: Tensor, calm: Tensor,
    compiled: ConceptDirections, words: bool,
) -> tuple[dict[str, Direction], dict[str, float]]:  # fmt: skip
    """Directions of every space, and figures. In a token space and its sentence space the first half-space is the
    compiled one; the others belong together, each of the tokens to one of the whole."""
    figures = {"neutral.brings": round(float(brings.double().mean()), 4)}
    spaces: dict[str, Direction] = {}
    for name, x in vectors.items():
        if name == POOLED:
            spaces[name] = _pooled(x, float(far.median()) * shift.by[name], brings, calm, figures)
            continue
        base = name.removesuffix(MEAN)
        delta = shift.by[base] * float(shift.weight[base].mean())
        which = named[base].which[brings]
        lengths = [float((far[which == f] if bool((which == f).any()) else far).median()) for f in range(FACETS)]
        parts = [_whole(x, times * delta, brings) for times in lengths]
        spaces[base], sums = _telling(named[base])
        fields = {k: torch.cat([getattr(p, k) for p in parts]) for k in parts[0].tensors() if k != "weight"}
        again = Direction(**fields, weight=parts[0].weight, together=sums)
        spaces[name] = _with(_never(compiled.spaces.get(name, parts[0]), words and name in compiled.spaces), again)
        figures |= {f"{name}.length.{f}": times for f, times in enumerate(lengths)}
    for name, d in compiled.spaces.items():
        if name not in spaces:
            spaces[name] = d if words else _never(d)
        elif not name.endswith(MEAN) and (words or name != POOLED):
            spaces[name] = _with(_never(d, words), spaces[name])
    return spaces, figures


def _pooled(x: Tensor, delta: Tensor, brings: Tensor, calm: Tensor, figures: dict[str, float]) -> Direction:
    """One vector a prompt: a half-space of its own."""
    risky, others = x[brings], x[calm]
    v = discriminant(risky, others)
    reach = float((risky @ v).quantile(0.9)) - border((others @ v), OUTSIDE)
    if float(v @ delta) < max(reach, 1e-6):
        v = discriminant(risky, torch.cat([others, risky - delta]))
    v = v / (others @ v).std().clamp_min(1e-12)
    length = _long_enough(float(v @ delta))
    z, far = others @ v, risky @ v
    mean = float(z.mean())
    at = max(border(z, OUTSIDE), mean + 1e-3)
    inner = min(float(far.median()) - length, at - CLEAR * length)
    figures |= {
        f"{POOLED}.border": round(at, 4),
        f"{POOLED}.found": round(float((far > at).double().mean()), 4),
        f"{POOLED}.calm_moved": round(float((z > at).double().mean()), 4),
        f"{POOLED}.length": round(length, 4),
    }
    return _half_space(v, delta / length, x, at, mean, float(z.std()), inner, length)


def _whole(x: Tensor, delta: Tensor, brings: Tensor) -> Direction:
    """How prompts outside are moved, by their mean token; a border of its own that no prompt asked about is near."""
    v = discriminant(x, x - delta)
    v = v / (x @ v).std().clamp_min(1e-12)
    length = _long_enough(float(v @ delta))
    z = x @ v
    top = float(z.max()) + length
    inner = min(float(z[brings].median()) - length, top)
    return _half_space(v, delta / length, x, top, float(z.mean()), 1.0, inner, length)


def _telling(named: _Named) -> tuple[Direction, Tensor]:
    """What tokens are asked, and the border [F] of prompts as a whole in their standardised scores. Tokens have no
    border of their own and nothing moves along these shifts but in mode ``erase``: all that is moved moves by Δ."""
    v = named.normal * SMALL
    mean, deviation = (named.mean * SMALL).unsqueeze(1), (named.deviation * SMALL / ALONE).unsqueeze(1)
    direction = Direction(
        normal=v, shift=v / v.square().sum(1, keepdim=True), threshold=mean + NEVER * deviation, mean=mean,
        deviation=deviation, spread=named.spread * SMALL,
    )  # fmt: skip
    return direction, ALONE * (named.border - named.mean) / named.deviation


def _long_enough(length: float) -> float:
    if length <= 1e-6:
        raise DiscoverError("What was learned points nowhere in the space of prompts; give more steps or prompts.")
    return length


def _half_space(
    v: Tensor, u: Tensor, x: Tensor, at: float, mean: float, deviation: float, inner: float, length: float
) -> Direction:
    one = torch.ones(1, 1)
    return Direction(
        normal=v.unsqueeze(0), shift=u.unsqueeze(0), threshold=at * one, mean=mean * one,
        deviation=max(deviation, 1e-6) * one, spread=((x.square() @ v.square()).sqrt().mean())[None],
        weight=torch.full((1,), length), inner=inner * one,
    )  # fmt: skip


def _vectors(c: Conditioning) -> Iterator[tuple[str, Tensor]]:
    for space in c.spaces or TOKENS:
        movable = None if c.movable is None else c.movable[:, space.rows]
        yield space.name + MEAN, geometry.mean(c.tokens[:, space.rows, space.channels].float(), movable)[:, 0].cpu()
    if c.pooled is not None:
        yield POOLED, c.pooled.float().cpu()


def _with(first: Direction, second: Direction) -> Direction:
    """The half-spaces of both; positions of the first."""
    fields = {}
    for field in dataclasses.fields(Direction):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if field.name == "weight":
            fields["weight"] = a
        elif a is None and b is None:
            fields[field.name] = None
        elif field.name == "inner":
            a = first.threshold if a is None else a
            b = second.threshold if b is None else b
            fields["inner"] = torch.cat([a, b.expand(-1, a.shape[1])])
        else:
            a = torch.full((first.facets,), NEVER) if a is None else a
            b = torch.full((second.facets,), NEVER) if b is None else b
            wide = a.ndim == 2 and field.name in ("threshold", "mean", "deviation")
            fields[field.name] = torch.cat([a, b.expand(-1, a.shape[1]) if wide else b])
    return Direction(**fields)


def _never(d: Direction, unless: bool = False) -> Direction:
    """The direction with a border that nothing reaches; as it is where ``unless``."""
    if unless or d.threshold is None or d.mean is None or d.deviation is None:
        return d
    return dataclasses.replace(d, threshold=d.mean + NEVER * d.deviation, inner=None, together=None)


# -- the published method --------------------------------------------------------------------------------------------


def discover_vector(
    concept: Concept,
    encode: Encode,
    denoiser: Denoiser,
    *,
    words: str | None = None,
    prompts: Sequence[str] | None = None,
    toward: bool = False,
    seed: int = 0,
    steps: int = 400,
    sampling_steps: int = 50,
    learn: tuple[float, float] = (0.2, 1.0),
    guidance: float = 7.5,
    rate: float = 0.06,
    cosine: float = 0.0,
    batch_size: int = 1,
    window: tuple[float, float] = (0.4, 1.0),
    family: str = "",
    progress: Progress | None = None,
    told: Told | None = None,
    stop: Callable[[], bool] | None = None,
    autocast: torch.dtype | None = None,
    recompute: bool = False,
) -> ConceptDirections:
    """The vector of Li et al. (WWW 2025, arXiv 2505.15427): c' = c + β·(b ⊗ a), b [L] zero and a [D] Gaussian at first.

    At the steps ``learn`` (shares) of the steered trajectory, one update each, ε(x_t, c') is drawn to
    ε_u + s·(ε_∅ − ε_u) with u the concept's words: negative guidance, distilled into the text; s is ``guidance``, the
    loss 10·MSE, the optimiser Adam.

    Args:
        words: u; None: the shortest unsafe sides of the recipe. prompts: c; None: ``words`` under many noises, as
            published. toward: to ε_∅ + s·(ε_u − ε_∅) instead, for an attribute to steer to (fairness).
        steps: updates. cosine: weight of 1 − cos(c', c). batch_size: pictures an update. window: of the sampling in
            which the vector is to act. The others: as for :func:`discover`.

    Returns:
        Directions that can only steer, at strength β; no border.

    Raises:
        DiscoverError: as :func:`discover`; the words have the same embedding as the empty prompt.
    """
    words = words or ", ".join(dict.fromkeys(sorted((u for u, _ in concept.pairs), key=len)[:3]))
    prompts = list(prompts or [words])
    model = _Model(denoiser, batch_size, progress, steps * 4 * batch_size, autocast, recompute)
    world = _World(model, encode, seed, sampling_steps, guidance)
    times = model.times(sampling_steps)
    learning = range(math.floor(learn[0] * len(times)), math.ceil(learn[1] * len(times)))
    unsafe, empty = world.conditioning([words]), world.conditioning([""])
    if torch.equal(unsafe.tokens, empty.tokens):
        raise DiscoverError(f"The encoder does not tell {words!r} from the empty prompt; give other words.")
    draw = torch.Generator().manual_seed(seed)
    spaces = {s.name: s.channels for s in unsafe.spaces or TOKENS}
    rows = {s.name: s.rows for s in unsafe.spaces or TOKENS}
    a = {n: torch.randn(unsafe.tokens[..., c].shape[-1], generator=draw).to(model.device) for n, c in spaces.items()}
    b = {n: torch.zeros(unsafe.tokens[:, r].shape[1], device=model.device) for n, r in rows.items()}
    shift = _Shift({n: -v for n, v in a.items()}, b)
    free = [*shift.by.values(), *shift.weight.values()]
    for p in free:
        p.requires_grad_(True)
    optimiser = torch.optim.Adam(free, lr=rate)
    curve: list[float] = []
    with model.frozen():
        episode = 0
        while len(curve) < steps and not (stop is not None and stop()):
            c = world.conditioning([prompts[(episode * batch_size + k) % len(prompts)] for k in range(batch_size)])
            x = _noise(model.shape, batch_size, seed, "vector", episode).to(model.device)
            u, nothing = _repeated(unsafe, batch_size), _repeated(empty, batch_size)
            for index, t in enumerate(times):
                if len(curve) >= steps:
                    break
                with torch.no_grad():
                    without = model.predict(x, t, nothing)
                if index in learning:
                    with torch.no_grad():
                        said = model.predict(x, t, u)
                        wanted = without + guidance * (said - without) if toward else said + guidance * (without - said)
                    with torch.enable_grad():
                        moved = shift.off(c)
                        got = model.predict(x, t, moved)
                        loss = 10 * F.mse_loss(got, wanted)
                        if cosine:
                            alike = F.cosine_similarity(moved.tokens.float(), c.tokens.float(), dim=-1).mean()
                            loss = loss + cosine * (1 - alike)
                        optimiser.zero_grad(set_to_none=True)
                        loss.backward()
                    optimiser.step()
                    curve.append(float(loss.detach()))
                    if not math.isfinite(curve[-1]):
                        raise DiscoverError(f"The loss became {curve[-1]} at step {len(curve)}; lower the rate.")
                    if told is not None:
                        told(STAGES[2], curve[-1])
                    got = got.detach()
                else:
                    with torch.no_grad():
                        got = model.predict(x, t, shift.off(c))
                eps = without + guidance * (got - without)
                root, noise = model.signal_at(t)
                clean = (x - noise * eps) / root
                after, left = model.signal_at(times[index + 1]) if index + 1 < len(times) else (1.0, 0.0)
                x = after * clean + left * eps
            episode += 1
        encoder = fingerprint_of(encode)
    model.finish()
    found: dict[str, Direction] = {}
    for name in spaces:
        u_, w = shift.by[name].detach().cpu().float(), shift.weight[name].detach().cpu().float()
        found[name] = Direction(
            normal=(u_ / u_.double().square().sum().float()).unsqueeze(0), shift=u_.unsqueeze(0), weight=w
        )
    if unsafe.pooled is not None:
        one = torch.zeros(1, unsafe.pooled.shape[1])
        one[0, 0] = 1.0
        found[POOLED] = Direction(normal=one, shift=one.clone(), weight=torch.zeros(1))
    return ConceptDirections(
        concept=concept.name + SUFFIX, title=f"{concept.title or concept.name}, vector", kind=concept.kind,
        version=concept.version, spaces=found, encoder=encoder, family=family, recipe=concept.digest(()),
        method="discovered", seed=seed, window=window, curve=tuple(curve), licence=concept.licence,
    )  # fmt: skip


def _repeated(c: Conditioning, count: int) -> Conditioning:
    parts = (None if t is None else t.expand(count, *t.shape[1:]) for t in (c.tokens, c.movable, c.pooled))
    return Conditioning(*parts, c.spaces)


# -- a broken run goes on --------------------------------------------------------------------------------------------


def _told_apart(denoiser: Denoiser) -> tuple[object, ...]:
    """What tells one model's weights from another's: shapes, and a few numbers of each tensor."""
    seen = []
    for p in denoiser.parameters():
        flat = p.detach().reshape(-1)
        seen.append((tuple(p.shape), *(float(v) for v in flat[:: max(1, flat.numel() // 2)][:2].float().cpu())))
    return tuple(seen)


def _key(*parts: object) -> str:
    concept, neutral, *rest = parts
    return hashlib.sha256(repr((concept.digest(neutral), *rest)).encode()).hexdigest()  # type: ignore[attr-defined]


@dataclasses.dataclass
class _Kept:
    """What a broken run left: evidence, Δ, the optimiser's moments, losses; safetensors, written whole or not."""

    path: Path | None
    key: str
    scores: dict[str, Tensor] | None = None
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    curve: list[float] = dataclasses.field(default_factory=list)

    @classmethod
    def open(cls, path: str | Path | None, key: str) -> _Kept:
        new = cls(None if path is None else Path(path), key)
        if new.path is None or not new.path.exists():
            return new
        try:
            with safe_open(str(new.path), framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != key:
                    raise DiscoverError(
                        f"{new.path.name} belongs to another run (other recipe, prompts, seed or settings): "
                        "delete it or name another file."
                    )
                found = {name: file.get_tensor(name) for name in file.keys()}
                new.curve = [float(v) for v in json.loads(metadata.get("curve", "[]"))]
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, DiscoverError):
                raise
            raise DiscoverError(
                f"{new.path.name} is no checkpoint of a discovery: delete it and start again."
            ) from None
        new.scores = {k.removeprefix("scores."): v for k, v in found.items() if k.startswith("scores.")} or None
        new.tensors = {k: v for k, v in found.items() if not k.startswith("scores.")}
        return new

    def save(self) -> None:
        if self.path is not None:
            tensors = {f"scores.{k}": v.contiguous() for k, v in (self.scores or {}).items()} | self.tensors
            metadata = {"format": "saferegion-discovery/1", "key": self.key, "curve": json.dumps(self.curve)}
            write_whole(self.path, to_bytes(tensors, metadata=metadata))

    def keep(self, shift: _Shift, optimiser: torch.optim.Optimizer, curve: list[float]) -> None:
        self.curve = list(curve)
        self.tensors = {f"by.{k}": v.detach().cpu().clone() for k, v in shift.by.items()}
        self.tensors |= {f"weight.{k}": v.detach().cpu().clone() for k, v in shift.weight.items()}
        for i, state in optimiser.state_dict()["state"].items():
            self.tensors |= {f"adam.{i}.{k}": torch.as_tensor(v).detach().cpu().clone() for k, v in state.items()}
        self.save()

    def restore(self, shift: _Shift) -> None:
        for part, prefix in ((shift.by, "by."), (shift.weight, "weight.")):
            for k in part:
                part[k] = self.tensors[prefix + k].to(part[k]).clone()

    def restore_optimiser(self, optimiser: torch.optim.Optimizer) -> None:
        state = optimiser.state_dict()
        state["state"] = {}
        for name, value in self.tensors.items():
            if name.startswith("adam."):
                _, i, field = name.split(".", 2)
                state["state"].setdefault(int(i), {})[field] = value
        optimiser.load_state_dict(state)
