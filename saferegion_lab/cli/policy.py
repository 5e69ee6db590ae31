"""``saferegion policy``: write, check and explain an operator's policy, and check its audit log."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from saferegion.core.errors import PolicyError

from . import console
from .encoder import DeviceOption, EncoderOption, TokenizerOption, encoder_of

app = typer.Typer(no_args_is_help=True, help="What a host keeps out for everybody, and the log of what it was asked.")

FolderOption = Annotated[
    list[Path] | None,
    typer.Option("--folder", "-f", help="A folder with concepts of your own (models/safe_region); repeatable."),
]
File = Annotated[Path, typer.Argument(help="The policy file.")]


@app.command()
def init(file: File, force: Annotated[bool, typer.Option(help="Write over a file that is there.")] = False) -> None:
    """Write a policy to begin with, every key explained; read by its owner only."""
    from saferegion.core.writing import write_whole
    from saferegion.guard.policy_file import EXAMPLE

    if file.exists() and not force:
        raise PolicyError(f"{file} is there already: choose another name, or say --force.")
    write_whole(file, EXAMPLE.encode())
    os.chmod(file, 0o600)
    console.out.print(f"wrote {file}; start a host with SAFE_REGION_POLICY={file}", markup=False, highlight=False)


@app.command()
def check(file: File, folder: FolderOption = None, as_json: console.JsonOption = False) -> None:
    """Say whether a policy is right, and what it does."""
    from saferegion.guard.library import Library
    from saferegion.guard.policy_file import read_policy

    policy = read_policy(file, Library(tuple(folder or ())))
    if as_json:
        rules = [
            {"concept": r.name, "action": r.action, "strength": r.strength, "preset": r.preset} for r in policy.rules
        ]
        console.print_json({"policy": policy.digest, "rules": rules, "warnings": list(policy.warnings)})
        return
    table = Table("concept", "action", "least strength", "preset")
    for r in policy.rules:
        table.add_row(r.name, r.action, f"{r.strength:g}", r.preset)
    console.out.print(table)
    for warning in policy.warnings:
        console.err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    console.out.print(f"{file} is right (policy {policy.digest[:16]})", markup=False, highlight=False)


@app.command()
def explain(
    prompts: Annotated[list[str], typer.Argument(help="Prompts, in quotes.")],
    file: Annotated[Path, typer.Option("--policy", "-p", help="The policy file.")],
    encoder: EncoderOption,
    folder: FolderOption = None,
    device: DeviceOption = "cpu",
    tokenizer: TokenizerOption = None,
    as_json: console.JsonOption = False,
) -> None:
    """Say what would become of prompts under a policy, without painting."""
    from saferegion.guard.enforce import judged
    from saferegion.guard.explain import explained
    from saferegion.guard.library import Library
    from saferegion.guard.policy_file import read_policy
    from saferegion.learn.settings import CompileSettings

    loaded = encoder_of(encoder, device, tokenizer)
    library = Library((*(folder or ()), *loaded.folders))
    policy = read_policy(file, library)
    with console.compiling() as told:
        each = explained(policy, prompts, loaded.encode, library, told, CompileSettings(family=loaded.family))
    rows = []
    for prompt, report in zip(prompts, each, strict=True):
        verdict = judged(policy, report.findings)
        action = "closed" if report.unresolved or (policy.minors and not report.minors) else verdict.action
        rows.append({"prompt": prompt, "action": action, "concepts": dict(verdict.concepts), **report.to_dict()})
        if not as_json:
            console.out.print(f"{action}: {prompt}", markup=False, highlight=False, soft_wrap=True)
            console.out.print(report.text([loaded.token_strings(prompt)]), markup=False, highlight=False)
    if as_json:
        console.print_json(rows)


@app.command("verify-log")
def verify_log_command(
    file: Annotated[Path, typer.Argument(help="The audit log (.jsonl).")], as_json: console.JsonOption = False
) -> None:
    """Check that no line of an audit log was changed, put in or taken out."""
    from saferegion.guard.audit import verify_log

    found = verify_log(file)
    if as_json:
        console.print_json({"lines": found.lines, "first": found.first, "torn": found.torn})
        return
    older = f", from number {found.first} on" if found.first > 1 else ""
    torn = f"; a last line of {found.torn} bytes was never finished" if found.torn else ""
    console.out.print(f"{found.lines:,} lines{older}, as they were written{torn}", markup=False, highlight=False)
