"""Run by the webui's interpreter: how far its own networks are from reference numbers on the same checkpoint.

usage: parity_webui.py DATA_DIRECTORY REFERENCE.npz FLAG...    (in the checkout; the last line printed is JSON)
"""

from __future__ import annotations

import sys
from pathlib import Path

data, reference, *flags = sys.argv[1:]
sys.argv = ["webui.py", *flags, "--skip-load-model-at-start", "--data-dir", data]
sys.path.insert(0, str(Path.cwd()))

from modules import initialize  # noqa: E402

initialize.imports()
initialize.initialize()

import parity  # noqa: E402
import torch  # noqa: E402
from modules import prompt_parser, shared  # noqa: E402


@torch.no_grad()
def main() -> None:
    prompts, wanted = parity.read(reference)
    model = shared.sd_model
    tokens = model.get_learned_conditioning(prompt_parser.SdConditioning(prompts))
    eps = model.apply_model(wanted["x"], wanted["t"], {"c_crossattn": [wanted["tokens"]]})
    pictures = (model.decode_first_stage(wanted["latents"]).clamp(-1, 1) + 1).permute(0, 2, 3, 1) * 127.5
    parity.report(wanted, tokens=tokens, eps=eps, pictures=pictures)


main()
