"""Other extensions of the webui's family, and what a request holds for each so that it paints a text of its own.

None of their code is here: SAFE_REGION_EXTENSIONS names a folder with their checkouts (default: extensions in
~/.cache/safe-region), each in a folder with the name of its repository.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import webui_files

FOLDER = "SAFE_REGION_EXTENSIONS"
UNSAFE, BENIGN = "a burning red house in a meadow", "a red house in a meadow"
ALL = frozenset({"webui", "forge", "neo"})
OLD = frozenset({"webui"})

Request = Callable[[str], dict[str, Any]]
"""From a text, what a request for a picture of it by way of an extension holds."""


@dataclass(frozen=True)
class Public:
    """An extension, and how a request reaches it.

    Attributes:
        repository: owner/name. script: its name over the API; None: it takes part in every request, or only on the
            page. values: the arguments that differ from their defaults, by place; text goes where ``{}`` stands.
        request: the rest of the request. images: it starts from a picture. changes: whether it changes the picture of
            the same prompt at all. hosts: those it says it is for. random: it draws numbers of its own.
    """

    repository: str
    script: str | None = None
    values: Mapping[int, Any] = field(default_factory=dict)
    request: Request = lambda text: {"prompt": text}
    always: bool = True
    images: bool = False
    changes: bool = True
    random: bool = False
    hosts: frozenset[str] = OLD

    @property
    def name(self) -> str:
        return self.repository.partition("/")[2]

    def filled(self, defaults: list[Any], text: str) -> list[Any]:
        """Its arguments, all of them."""
        known = {**dict(enumerate(defaults)), **self.values}
        return [v.replace("{}", text) if isinstance(v, str) and i in self.values else v for i, v in known.items()]


def _region(text: str) -> dict[str, Any]:
    return {"prompt": ""}


TILED = {
    0: True, 4: 64, 5: 64, 6: 64, 7: 64, 8: 0, 9: 1, 18: True, 19: True,
    21: True, 22: 0.0, 23: 0.0, 24: 1.0, 25: 1.0, 26: "{}", 27: "",
}  # fmt: skip
REGIONS = {0: True, 2: "Matrix", 3: "Columns", 5: "Prompt", 6: "1,1", 11: "Attention", 12: []}
CASES: dict[str, Public] = {
    "Tiled Diffusion, a region's prompt": Public(
        "pkuliyi2015/multidiffusion-upscaler-for-automatic1111", "tiled diffusion", TILED, _region
    ),
    "Tiled Diffusion, Mixture of Diffusers": Public(
        "pkuliyi2015/multidiffusion-upscaler-for-automatic1111", "tiled diffusion",
        {**TILED, 1: "Mixture of Diffusers"}, _region,
    ),
    "Regional Prompter, attention": Public(
        "hako-mikan/sd-webui-regional-prompter", "regional prompter", REGIONS,
        lambda text: {"prompt": f"{BENIGN} BREAK {text}"}, hosts=ALL,
    ),
    "Regional Prompter, latent": Public(
        "hako-mikan/sd-webui-regional-prompter", "regional prompter", {**REGIONS, 11: "Latent"},
        lambda text: {"prompt": f"{BENIGN} BREAK {text}"}, hosts=ALL,
    ),
    "Latent Couple": Public(
        "opparco/stable-diffusion-webui-two-shot", "latent couple extension", {0: True},
        lambda text: {"prompt": f"a meadow AND {text} AND {text}"},
    ),
    "Dynamic Prompts": Public(
        "adieyal/sd-dynamic-prompts", "dynamic prompts v2.17.1", {0: True},
        lambda text: {"prompt": "{" + text + "|" + text + ", quiet}"},
    ),
    "Neutral Prompt, AND_PERP": Public(
        "ljleb/sd-webui-neutral-prompt", request=lambda text: {"prompt": f"a meadow :0.3 AND_PERP {text} :1.2"}
    ),
    "Neutral Prompt, AND_SALT": Public(
        "ljleb/sd-webui-neutral-prompt", request=lambda text: {"prompt": f"a meadow :0.3 AND_SALT {text} :1.5"}
    ),
    "Dynamic Thresholding": Public(
        "mcmonkeyprojects/sd-dynamic-thresholding", "dynamic thresholding (cfg scale fix)", {0: True, 1: 3.0}, hosts=ALL
    ),
    "NegPiP, in the prompt": Public(
        "hako-mikan/sd-webui-negpip", "negpip", {0: True}, lambda text: {"prompt": f"{text}, (a tree:-1.2)"}, hosts=ALL
    ),
    "NegPiP, in the negative prompt": Public(
        "hako-mikan/sd-webui-negpip", "negpip", {0: True},
        lambda text: {"prompt": "a meadow", "negative_prompt": f"a tree, ({text}:-1.5)"}, hosts=ALL,
    ),
    "Cutoff": Public("hnmr293/sd-webui-cutoff", "cutoff", {0: True, 1: "red", 2: 0.8}),
    "Composable LoRA": Public(
        "a2569875/stable-diffusion-webui-composable-lora", "composable lora", {0: True},
        lambda text: {"prompt": f"{text} <lora:{webui_files.LORA}:0.3>"}, changes=False,
    ),
    "LoRA Block Weight": Public(
        "hako-mikan/sd-webui-lora-block-weight",
        request=lambda text: {"prompt": f"{text} <lora:{webui_files.LORA}:0.3:ALL>"}, hosts=ALL,
    ),
    "Embedding Merge": Public(
        "klimaleksus/stable-diffusion-webui-embedding-merge",
        request=lambda text: {"prompt": "a " + "".join(f"<'{w}'+'{w}'*0.1> " for w in text.split()[1:3]) + "house"},
    ),
    "CADS": Public("v0xie/sd-webui-cads", "cads", {0: True}, random=True),
    "Ultimate SD Upscale": Public(
        "Coyote-A/ultimate-upscale-for-automatic1111", "ultimate sd upscale",
        {1: 64, 2: 64, 4: 0, 6: 0.9, 8: 0, 10: 0, 13: 0, 14: 1, 15: 64, 16: 64}, always=False, images=True,
    ),
    "Detail Daemon": Public("muerrilla/sd-webui-detail-daemon", "detail daemon", {1: True, 7: 0.3}, hosts=ALL),
    "Vectorscope CC": Public("Haoming02/sd-webui-vectorscope-cc", "vectorscope cc", {0: True, 2: 1.0}, hosts=ALL),
    "Self Attention Guidance": Public("ashen-sensored/sd_webui_SAG", "self attention guidance", {0: True}),
    "Tag Autocomplete": Public("DominikDoom/a1111-sd-webui-tagcomplete", changes=False, hosts=ALL),
    "Enable Checker": Public("shirayu/sd-webui-enable-checker", changes=False, hosts=ALL),
    "Prompt Fusion": Public(
        "ljleb/prompt-fusion-extension", request=lambda text: {"prompt": f"[a meadow:{text}:0,0.3]"}
    ),
    "Forge Couple": Public(
        "Haoming02/sd-forge-couple", "forge couple", {0: True},
        lambda text: {"prompt": f"{BENIGN}\n{text}"}, hosts=frozenset({"forge", "neo"}),
    ),
}  # fmt: skip
ALONE = {"prompt-fusion-extension"}
"""What takes the place of the host's own parts while it is installed, used or not."""
SETTINGS: dict[str, Any] = {
    "dp_ignore_whitespace": False, "dp_write_raw_template": False, "dp_write_prompts_to_file": False,
    "dp_parser_variant_start": "{", "dp_parser_variant_end": "}", "dp_parser_wildcard_wrap": "__",
    "dp_limit_jinja_prompts": False, "dp_auto_purge_cache": False, "dp_wildcard_manager_no_dedupe": False,
    "dp_wildcard_manager_no_sort": False, "dp_wildcard_manager_shuffle": False, "dp_magicprompt_default_model": "",
    "dp_magicprompt_batch_size": 1,
}  # fmt: skip
"""Dynamic Prompts declares its settings after the host has read them, so that it fails until someone has saved them."""


def checkout(case: Public) -> Path:
    named = os.environ.get(FOLDER)
    return Path(named or Path.home() / ".cache" / "safe-region" / "extensions").expanduser() / case.name


def install(data: Path, host: str, alone: bool) -> list[str]:
    """Copies into the data directory of a host what is for it; names of those that are not here."""
    missing = []
    (data / "ui-config.json").write_text("{}", encoding="utf-8")  # one of them reads it before it is there
    config = data / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text(encoding="utf-8")), **SETTINGS}), encoding="utf-8")
    for case in {c.name: c for c in CASES.values() if host in c.hosts and (c.name in ALONE) == alone}.values():
        if (checkout(case) / "scripts").is_dir():
            shutil.copytree(checkout(case), data / "extensions" / case.name, ignore=shutil.ignore_patterns(".git"))
        else:
            missing.append(case.name)
    return missing


def commit(case: Public) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout(case)), "log", "-1", "--format=%h of %cs"], capture_output=True, text=True
    )
    return done.stdout.strip() or "an unknown commit"
