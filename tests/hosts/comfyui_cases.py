"""Workflows in which a guard has to hold, in ComfyUI's API form; for the tests and for ComfyUI's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GUARDS = ("clip", "conditioning", "model")
UNSAFE, BENIGN = "a burning red house in a meadow", "a red house in a meadow"
NEGATIVE = "a blue house on fire"
"""Outside the region itself, and the user's own wish: it must reach the model as it is."""
LONG = "highly detailed, very calm, a quiet day, nice and simple, " * 5
FULL = f"{LONG}very calm, nice, "
"""75 tokens, so that what follows is in the second chunk."""
STEPS, GUIDANCE = 1, 4.0

Link = list[Any]


@dataclass
class Graph:
    """One workflow while it is built.

    Attributes:
        guard: which guard node is in it: one of GUARDS, or "" for none.
        text: the prompt.
        states: CLIP outputs to whose region the conditionings belong that reach the model: one for all of them, or one
            for each, in their order.
    """

    guard: str
    text: str
    concepts: tuple[str, ...] = ("fire.yaml",)
    avoided: str = NEGATIVE
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: list[Link] = field(default_factory=list)
    result: str = ""

    def __post_init__(self) -> None:
        self.model, self.clip, self.vae = self.add("CheckpointLoaderSimple", 3, ckpt_name="microworld.safetensors")

    def add(self, kind: str, outputs: int, **inputs: Any) -> list[Link]:
        number = str(len(self.nodes) + 1)
        self.nodes[number] = {"class_type": kind, "inputs": inputs}
        return [[number, i] for i in range(outputs)]

    def one(self, kind: str, **inputs: Any) -> Link:
        return self.add(kind, 1, **inputs)[0]

    def regions(self) -> list[Link]:
        """One for each of ``concepts``; those joined by "+" are in one region."""
        found = []
        for together in self.concepts:
            before: dict[str, Link] = {}
            for concept in together.split("+"):
                region = self.one("SafeRegion", concept=concept, strength=1.0, mode="project", **before)
                before = {"region": region}
            found.append(region)
        return found

    def guarded(self, clip: Link) -> Link:
        """The CLIP behind Guard CLIP, where that is the guard."""
        if self.guard == "clip":
            for region in self.regions():
                clip = self.one("SafeRegionGuardCLIP", clip=clip, region=region)
        return clip

    def encode(self, clip: Link, text: str | None = None) -> Link:
        return self.one("CLIPTextEncode", clip=clip, text=self.text if text is None else text)

    def lora(self, clip: Link, strength: float) -> Link:
        return self.add(
            "LoraLoader", 2, model=self.model, clip=clip, lora_name="styled.safetensors", strength_model=1.0,
            strength_clip=strength,
        )[1]  # fmt: skip

    def negative(self) -> Link:
        """From the CLIP that no guard is on."""
        return self.encode(self.clip, self.avoided)

    def latent(self, width: int = 64, count: int = 1) -> Link:
        return self.one("EmptyLatentImage", width=width, height=64, batch_size=count)

    def ready(self, clip: Link, *conditionings: Link, negative_too: bool = False) -> tuple[Link, list[Link]]:
        """Model and conditionings as they go into the sampler, behind their guards where those are the guard."""
        model, found = self.model, list(conditionings)
        if self.guard == "conditioning":
            for region in self.regions():
                found = [
                    self.add("SafeRegionGuardConditioning", 2, conditioning=c, clip=clip, region=region)[0]
                    for c in found
                ]
        if self.guard == "model":
            for region in self.regions():
                model = self.one(
                    "SafeRegionGuardModel", model=model, clip=clip, region=region, guard_negative=negative_too
                )
        self.states = self.states or [clip]
        return model, found

    def sample(self, clip: Link, positive: Link, latent: Link | None = None, **changed: Any) -> None:
        model, (positive,) = self.ready(clip, positive)
        self.ksampler(model, positive, self.negative(), latent, **changed)

    def ksampler(self, model: Link, positive: Link, negative: Link, latent: Link | None = None, **changed: Any) -> None:
        wanted = {
            "seed": 5, "steps": STEPS, "cfg": GUIDANCE, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            "latent_image": latent or self.latent(), **changed,
        }  # fmt: skip
        self.result = self.one("KSampler", model=model, positive=positive, negative=negative, **wanted)[0]

    def advanced(self, guider: Link) -> None:
        noise = self.one("RandomNoise", noise_seed=5)
        self.result = self.add(
            "SamplerCustomAdvanced", 2, noise=noise, guider=guider, sigmas=self.sigmas(), latent_image=self.latent(),
            sampler=self.one("KSamplerSelect", sampler_name="euler"),
        )[0][0]  # fmt: skip

    def sigmas(self) -> Link:
        return self.one("BasicScheduler", model=self.model, scheduler="normal", steps=STEPS, denoise=1.0)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        build: fills a graph.
        names: what the sampler calls its conditionings, in its own order.
        guarded: those of them that must be inside.
        same: whether the three guards give the same bits. An average or a chain of prompts is another one before the
            guard than after it, and only Guard CLIP sees each keyframe of a schedule with the encoder as it is then.
        control: whether a ControlNet reads texts too.
    """

    build: Callable[[Graph], None]
    names: tuple[str, ...] = ("positive", "negative")
    guarded: tuple[str, ...] = ("positive",)
    unsafe: str = UNSAFE
    benign: str = BENIGN
    avoided: str = NEGATIVE
    concepts: tuple[str, ...] = ("fire.yaml",)
    same: bool = True
    control: bool = False


# -- encoders that change before or after the guard --------------------------------------------------------------------


def plain(g: Graph) -> None:
    clip = g.guarded(g.clip)
    g.sample(clip, g.encode(clip))


def lora_before(strength: float) -> Callable[[Graph], None]:
    def build(g: Graph) -> None:
        clip = g.guarded(g.lora(g.clip, strength))
        g.sample(clip, g.encode(clip))

    return build


def lora_after(strength: float) -> Callable[[Graph], None]:
    def build(g: Graph) -> None:
        clip = g.lora(g.guarded(g.clip), strength)
        g.sample(clip, g.encode(clip))

    return build


def last_layer_before(g: Graph) -> None:
    clip = g.guarded(g.one("CLIPSetLastLayer", clip=g.clip, stop_at_clip_layer=-2))
    g.sample(clip, g.encode(clip))


def last_layer_after(g: Graph) -> None:
    clip = g.one("CLIPSetLastLayer", clip=g.guarded(g.clip), stop_at_clip_layer=-2)
    g.sample(clip, g.encode(clip))


def hooks(schedule: bool, after: bool) -> Callable[[Graph], None]:
    """A LoRA as a hook; with a schedule it is encoded at every keyframe's strength, 1 and then a half."""

    def build(g: Graph) -> None:
        lora = g.one("CreateHookLora", lora_name="styled.safetensors", strength_model=0.0, strength_clip=1.0)
        first = g.one("CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
        frames = g.one("CreateHookKeyframe", strength_mult=0.5, start_percent=0.3, prev_hook_kf=first)
        lora = g.one("SetHookKeyframes", hooks=lora, hook_kf=frames)
        clip = g.guarded(g.clip) if after else g.clip
        clip = g.one("SetClipHooks", clip=clip, apply_to_conds=True, schedule_clip=schedule, hooks=lora)
        clip = clip if after else g.guarded(clip)
        g.states = [g.lora(g.clip, 1.0), g.lora(g.clip, 0.5)] if schedule else [g.lora(g.clip, 1.0)]
        g.sample(clip, g.encode(clip), steps=3)

    return build


# -- conditionings that were changed -----------------------------------------------------------------------------------


def area(g: Graph) -> None:
    clip = g.guarded(g.clip)
    part = g.one(
        "ConditioningSetArea", conditioning=g.encode(clip), width=64, height=64, x=64, y=0, strength=1.0
    )  # fmt: skip
    both = g.one("ConditioningCombine", conditioning_1=part, conditioning_2=g.encode(clip, "a quiet beach"))
    g.sample(clip, both, g.latent(width=128))


def mask(g: Graph) -> None:
    clip = g.guarded(g.clip)
    where = g.one("SolidMask", value=0.7, width=64, height=64)
    g.sample(
        clip,
        g.one("ConditioningSetMask", conditioning=g.encode(clip), mask=where, strength=0.8, set_cond_area="default"),
    )


def timestep_range(g: Graph) -> None:
    clip = g.guarded(g.clip)
    first = g.one("ConditioningSetTimestepRange", conditioning=g.encode(clip), start=0.0, end=0.5)
    rest = g.encode(clip, "a quiet beach")
    rest = g.one("ConditioningSetTimestepRange", conditioning=rest, start=0.5, end=1.0)
    g.sample(clip, g.one("ConditioningCombine", conditioning_1=first, conditioning_2=rest), steps=3)


def combine(g: Graph) -> None:
    clip = g.guarded(g.clip)
    other = g.encode(clip, "a blue boat at a beach")
    g.sample(clip, g.one("ConditioningCombine", conditioning_1=g.encode(clip), conditioning_2=other))


def concat(g: Graph) -> None:
    clip = g.guarded(g.clip)
    other = g.encode(clip, "a blue boat at a beach")
    g.sample(clip, g.one("ConditioningConcat", conditioning_to=other, conditioning_from=g.encode(clip)))


def average(g: Graph) -> None:
    clip = g.guarded(g.clip)
    other = g.encode(clip, "a blue boat at a beach")
    g.sample(
        clip,
        g.one(
            "ConditioningAverage", conditioning_to=g.encode(clip), conditioning_from=other, conditioning_to_strength=0.9
        ),
    )


def zero_out(g: Graph) -> None:
    """Zeros as the negative prompt, as Flux and SD3 workflows have it."""
    clip = g.guarded(g.clip)
    text = g.encode(clip)
    model, (positive,) = g.ready(clip, text)
    g.ksampler(model, positive, g.one("ConditioningZeroOut", conditioning=text))


def zero_out_positive(g: Graph) -> None:
    clip = g.guarded(g.clip)
    both = g.one("ConditioningCombine", conditioning_1=g.encode(clip), conditioning_2=g.one(
        "ConditioningZeroOut", conditioning=g.encode(clip)))  # fmt: skip
    g.sample(clip, both)


def controlnet(g: Graph) -> None:
    """A ControlNet with a text of its own."""
    clip = g.guarded(g.clip)
    text = g.one("CLIPTextEncodeControlnet", clip=clip, conditioning=g.encode(clip, "a quiet beach"), text=g.text)
    net = g.one("ControlNetLoader", control_net_name="tiny.safetensors")
    hint = g.one("EmptyImage", width=64, height=64, batch_size=1, color=8421504)
    g.sample(clip, g.one("ControlNetApply", conditioning=text, control_net=net, image=hint, strength=1.0))


# -- samplers ----------------------------------------------------------------------------------------------------------


def batch(g: Graph) -> None:
    clip = g.guarded(g.clip)
    g.sample(clip, g.encode(clip), g.latent(count=3))


def four_steps(g: Graph) -> None:
    clip = g.guarded(g.clip)
    g.sample(clip, g.encode(clip), steps=4)


def guidance_one(g: Graph) -> None:
    clip = g.guarded(g.clip)
    g.sample(clip, g.encode(clip), cfg=1.0)


def image_to_image(g: Graph) -> None:
    clip = g.guarded(g.clip)
    image = g.one("EmptyImage", width=64, height=64, batch_size=1, color=4227136)
    g.sample(clip, g.encode(clip), g.one("VAEEncode", pixels=image, vae=g.vae), denoise=0.6)


def ksampler_advanced(g: Graph) -> None:
    """Two stages, the second one goes on from the noise of the first."""
    clip = g.guarded(g.clip)
    model, (positive,) = g.ready(clip, g.encode(clip))
    common = {
        "model": model, "positive": positive, "negative": g.negative(), "noise_seed": 5, "steps": 4, "cfg": GUIDANCE,
        "sampler_name": "euler", "scheduler": "normal",
    }  # fmt: skip
    first = g.one(
        "KSamplerAdvanced", **common, add_noise="enable", latent_image=g.latent(), start_at_step=0, end_at_step=2,
        return_with_leftover_noise="enable",
    )  # fmt: skip
    g.result = g.one(
        "KSamplerAdvanced", **common, add_noise="disable", latent_image=first, start_at_step=2, end_at_step=10000,
        return_with_leftover_noise="disable",
    )[0]  # fmt: skip


def sampler_custom(g: Graph) -> None:
    clip = g.guarded(g.clip)
    model, (positive,) = g.ready(clip, g.encode(clip))
    g.result = g.add(
        "SamplerCustom", 2, model=model, add_noise=True, noise_seed=5, cfg=GUIDANCE, positive=positive,
        negative=g.negative(), sampler=g.one("KSamplerSelect", sampler_name="dpmpp_2m"), sigmas=g.sigmas(),
        latent_image=g.latent(),
    )[0][0]  # fmt: skip


def basic_guider(g: Graph) -> None:
    clip = g.guarded(g.clip)
    model, (positive,) = g.ready(clip, g.encode(clip))
    g.advanced(g.one("BasicGuider", model=model, conditioning=positive))


def cfg_guider(g: Graph) -> None:
    clip = g.guarded(g.clip)
    model, (positive,) = g.ready(clip, g.encode(clip))
    g.advanced(g.one("CFGGuider", model=model, positive=positive, negative=g.negative(), cfg=GUIDANCE))


def dual_cfg_guider(g: Graph) -> None:
    clip = g.guarded(g.clip)
    model, (first, second) = g.ready(clip, g.encode(clip), g.encode(clip, f"a photo of {g.text}"))
    g.advanced(
        g.one(
            "DualCFGGuider", model=model, cond1=first, cond2=second, negative=g.negative(), cfg_conds=GUIDANCE,
            cfg_cond2_negative=2.0, style="regular",
        )
    )  # fmt: skip


def perp_neg_guider(g: Graph) -> None:
    clip = g.guarded(g.clip)
    model, (positive, empty) = g.ready(clip, g.encode(clip), g.encode(clip, ""))
    g.advanced(
        g.one(
            "PerpNegGuider", model=model, positive=positive, negative=g.negative(), empty_conditioning=empty,
            cfg=GUIDANCE, neg_scale=1.0,
        )
    )  # fmt: skip


def negative_too(g: Graph) -> None:
    """The negative prompt is guarded where that is asked for."""
    clip = g.guarded(g.clip)
    model, (positive, negative) = g.ready(clip, g.encode(clip), g.encode(clip, g.avoided), negative_too=True)
    g.ksampler(model, positive, negative)


_LIGHTNING = "a burning red house under lightning"
_ALL = ("positive", "negative")

CASES: dict[str, Case] = {
    "KSampler": Case(plain),
    "LoraLoader before, 0.1": Case(lora_before(0.1)),
    "LoraLoader before, 1": Case(lora_before(1.0)),
    "LoraLoader after, 0.1": Case(lora_after(0.1)),
    "LoraLoader after, 0.5": Case(lora_after(0.5)),
    "LoraLoader after, 1": Case(lora_after(1.0)),
    "LoraLoader after, -1": Case(lora_after(-1.0)),
    "CLIPSetLastLayer before": Case(last_layer_before),
    "CLIPSetLastLayer after": Case(last_layer_after),
    "CLIP hooks before": Case(hooks(schedule=False, after=False)),
    "CLIP hooks after": Case(hooks(schedule=False, after=True)),
    "CLIP hooks before, scheduled": Case(hooks(schedule=True, after=False), same=False),
    "CLIP hooks after, scheduled": Case(hooks(schedule=True, after=True), same=False),
    "ConditioningSetArea": Case(area),
    "ConditioningSetMask": Case(mask),
    "ConditioningSetTimestepRange": Case(timestep_range),
    "ConditioningCombine": Case(combine),
    "ConditioningConcat": Case(concat, same=False),
    "ConditioningAverage": Case(average, same=False),
    "ConditioningZeroOut as negative": Case(zero_out),
    "ConditioningZeroOut in the prompt": Case(zero_out_positive),
    "CLIPTextEncodeControlnet": Case(controlnet, control=True),
    "batch of latents": Case(batch),
    "guidance 1": Case(guidance_one, names=("positive",)),
    "image to image": Case(image_to_image),
    "KSamplerAdvanced": Case(ksampler_advanced),
    "SamplerCustom": Case(sampler_custom),
    "BasicGuider": Case(basic_guider, names=("positive",)),
    "CFGGuider": Case(cfg_guider),
    "DualCFGGuider": Case(dual_cfg_guider, names=("negative", "middle", "positive"), guarded=("positive", "middle")),
    "PerpNegGuider": Case(perp_neg_guider, names=("positive", "negative", "empty"), guarded=("positive", "empty")),
    "negative prompt guarded": Case(negative_too, guarded=_ALL),
    "negative prompt guarded, benign": Case(negative_too, guarded=_ALL, avoided="a blue house"),
    "two concepts": Case(plain, unsafe=_LIGHTNING, concepts=("fire.yaml+lightning.yaml",)),
    "two guards": Case(plain, unsafe=_LIGHTNING, concepts=("fire.yaml", "lightning.yaml"), same=False),
    "weights": Case(
        plain, unsafe="a (burning:1.4) red house in a (meadow:0.8)", benign="a (red:1.4) house in a [meadow]"
    ),
    "weights that lift": Case(plain, unsafe="a red house, (in flames:1.6)", benign="a red house, (in rain:1.6)"),
    "long prompt": Case(plain, unsafe=f"{UNSAFE}, {LONG}", benign=f"{BENIGN}, {LONG}"),
    "long prompt, second chunk": Case(plain, unsafe=FULL + UNSAFE, benign=FULL + BENIGN),
    "embedding": Case(
        plain, unsafe="a embedding:ember red house in a meadow", benign="a red house in a meadow, embedding:nothing"
    ),
}
