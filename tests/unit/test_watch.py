"""What the diffusion model reads is looked at: known rows in every form, others once, those that push away never."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import webui_fakes  # noqa: F401  (puts the extension's folder on the path)

from saferegion.guard import watch
from saferegion_webui import interception
from saferegion_webui.refusal import SafeRegionRefused


def rows(seed: int, count: int = 77, width: int = 64) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


class Seen:
    """A watch that counts what it looked at, and refuses rows with a large number in them."""

    def __init__(self) -> None:
        self.looked: list[torch.Tensor] = []
        self.watch = watch.Watch(self.look)

    def look(self, found: torch.Tensor, vector: torch.Tensor | None) -> None:
        self.looked.append(found)
        if found.max() > 90:
            raise SafeRegionRefused("outside")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_known_rows_are_known_in_every_form(dtype: torch.dtype) -> None:
    seen = Seen()
    one, two, empty = rows(0), rows(1), rows(2)
    for known in (one, two, empty):
        seen.watch.allow(known)
    forms = {
        "as it is": torch.stack([one, two, two]),
        "repeated": torch.stack([one.repeat(2, 1), two.repeat(2, 1)]),
        "last row repeated": torch.cat([one, one[-1:].expand(77, -1)])[None],
        "filled with an empty prompt": torch.cat([one, empty])[None],
        "cut": one[:40][None],
        "of four dimensions": one[None, None],
    }
    for name, context in forms.items():
        seen.watch.check(context.to(dtype), None, None)
        assert not seen.looked, name


def test_others_are_looked_at_once_and_refused_where_they_are_outside() -> None:
    seen = Seen()
    seen.watch.allow(rows(0))
    for _ in range(3):
        seen.watch.check(torch.stack([rows(0), rows(5)]), None, None)
    assert len(seen.looked) == 1 and torch.equal(seen.looked[0], rows(5))
    wrong = rows(6)
    wrong[3, 3] = 100.0
    for _ in range(2):
        with pytest.raises(SafeRegionRefused):
            seen.watch.check(wrong[None], None, None)
    moved = rows(0)
    moved[20:] += 0.3 * rows(8)[20:]
    seen.watch.check(moved[None], None, None)
    assert torch.equal(seen.looked[-1], moved)  # a third of a row's length is no rounding


def test_rows_that_push_away_may_be_anything() -> None:
    seen = Seen()
    seen.watch.allow(rows(0))
    both = torch.stack([rows(0), rows(9)])
    seen.watch.check(both, None, watch.away_of({"cond_or_uncond": [0, 1]}, 2))
    for order in ([both], [both[:1], both[1:]]):  # both at once, or one after the other
        seen.watch.step(1, 1)
        for context in order:
            seen.watch.check(context, None, None)
        seen.watch.step_ends()
    assert not seen.looked
    seen.watch.step(1, 1)
    seen.watch.check(both, None, None)
    seen.watch.check(torch.stack([rows(0), rows(10)]), None, None)  # a region's: beyond those of the step
    assert len(seen.looked) == 1 and torch.equal(seen.looked[0], rows(10))
    seen.watch.step_ends()
    seen.watch.check(both[1:], None, None)  # outside of a step nothing is known of its sign
    assert len(seen.looked) == 2
    seen.watch.allow_away(rows(11))
    seen.watch.check(rows(11)[None], None, None)
    assert len(seen.looked) == 2
    seen.watch.step(1, 0)
    seen.watch.check(rows(11)[None], None, None)  # the negative prompt's rows where the prompt's belong
    assert len(seen.looked) == 3
    assert watch.away_of({"cond_or_uncond": [1, 0]}, 4) == [True, True, False, False]
    assert watch.away_of(None, 4) is None and watch.away_of({"cond_or_uncond": [0, 1]}, 3) is None


def test_a_pass_of_the_model_is_looked_at_and_what_is_encoded_is_guarded() -> None:
    seen = Seen()
    seen.watch.allow(rows(0))

    class Model(torch.nn.Module):
        def forward(self, x: Any, t: Any, context: Any = None, **_: Any) -> Any:
            return x

    class Checkpoint:
        def get_learned_conditioning(self, prompts: Any) -> Any:
            return "raw"

    on = SimpleNamespace(watch=lambda: seen.watch, encoded=lambda checkpoint, prompts, conds: "guarded")
    off = SimpleNamespace(watch=lambda: None, encoded=lambda checkpoint, prompts, conds: conds)
    model, checkpoint = Model(), Checkpoint()
    for _ in range(2):
        interception.install_model(checkpoint, model, on)
    assert len(model._forward_pre_hooks) == 1
    model(1, 2, context=rows(3)[None])
    model(1, 2, rows(4)[None])
    assert len(seen.looked) == 2
    assert checkpoint.get_learned_conditioning(["a"]) == "guarded"
    with interception.unguarded():
        assert checkpoint.get_learned_conditioning(["a"]) == "raw"
    interception.install_model(checkpoint, model, off)
    model(1, 2, context=rows(7)[None])
    assert len(seen.looked) == 2 and checkpoint.get_learned_conditioning(["a"]) == "raw"
