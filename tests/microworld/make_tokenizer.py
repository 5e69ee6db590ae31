"""Writes the tokenizer directory from OpenAI CLIP's list of byte pair merges (bpe_simple_vocab_16e6.txt.gz, MIT)."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

MERGES = 49152 - 256 - 2
NOTICE = """vocab.json and merges.txt hold the byte pair encoding of CLIP (bpe_simple_vocab_16e6.txt.gz),
https://github.com/openai/CLIP, written in the layout that transformers reads.

MIT License

Copyright (c) 2021 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


def byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes in the order that CLIP numbers them."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]


def main(source: Path, out: Path) -> None:
    lines = gzip.open(source, "rt", encoding="utf-8").read().split("\n")
    merges = lines[1 : 1 + MERGES]
    symbols = byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *(m.replace(" ", "") for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    if len(vocab) != 49408:
        raise ValueError(f"{source} gives {len(vocab)} tokens, CLIP has 49,408: take the file of OpenAI CLIP.")
    out.mkdir(parents=True, exist_ok=True)
    compact = json.dumps(vocab, ensure_ascii=False, separators=(",", ":"))
    (out / "vocab.json").write_text(compact, encoding="utf-8")
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    begin, end = "<|startoftext|>", "<|endoftext|>"
    special = {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": end}
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "add_prefix_space": False,
        "errors": "replace", **special,
    }  # fmt: skip
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (out / "NOTICE").write_text(NOTICE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    main(args.source, args.out)
