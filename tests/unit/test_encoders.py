"""Text encoders read from disk, on tiny random models of every layout."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from saferegion import SafeRegionError
from saferegion_lab import encoders
from saferegion_lab.encoders import EncoderError, checkpoint, directory

transformers = pytest.importorskip("transformers")
BUNDLED = directory.BUNDLED_TOKENIZER
if not (BUNDLED / "vocab.json").is_file():
    pytest.skip("the CLIP tokenizer is not in this checkout", allow_module_level=True)

VOCABULARY, BEGIN, END = 49408, 49406, 49407
PROMPTS = ["a red house by the sea", "", "a cat 🐱, naïve café"]
LONG = "one two three four five " * 40
T5_WORDS = ["a", "red", "house", "by", "the", "sea", "cat", "one", "two", "three", "four", "five"]


# --- tiny models -------------------------------------------------------------------------------------------------


def _shake(model: nn.Module, seed: int) -> nn.Module:
    """Weights far enough from a fresh start that every tensor matters to the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _clip(width: int, layers: int, seed: int, act: str = "quick_gelu", project: bool = False, heads: int = 1):
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=24,
        hidden_act=act,
        bos_token_id=BEGIN,
        eos_token_id=END,
    )
    cls = transformers.CLIPTextModelWithProjection if project else transformers.CLIPTextModel
    return _shake(cls(config), seed)


def _save(model, folder: Path) -> Path:
    model.save_pretrained(str(folder), safe_serialization=True)
    return folder


def _words(folder: Path, pad: str = "<|endoftext|>") -> Path:
    shutil.copytree(BUNDLED, folder, dirs_exist_ok=True)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        data = json.loads((folder / name).read_text())
        data["pad_token"] = pad
        (folder / name).write_text(json.dumps(data))
    return folder


def _t5_words(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *(("▁" + w, -2.0) for w in T5_WORDS)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=2))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(str(folder))
    return folder


def _t5(seed: int, cls: str = "T5EncoderModel", width: int = 40):
    config = transformers.UMT5Config if cls.startswith("UMT5") else transformers.T5Config
    return _shake(
        getattr(transformers, cls)(
            config(vocab_size=32, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2, is_encoder_decoder=False)
            if cls.endswith("EncoderModel")
            else config(vocab_size=32, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        ),
        seed,
    )


def _clip_file(model, prefix: str) -> dict[str, torch.Tensor]:
    state = {k.removeprefix("text_model."): v for k, v in model.state_dict().items() if "position_ids" not in k}
    return {prefix + k: v.clone() for k, v in state.items()}


class OpenClip(nn.Module):
    """An independent OpenCLIP text tower: PyTorch's own attention, OpenCLIP's names."""

    def __init__(self, width: int, layers: int, heads: int, projection: int, seed: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.positional_embedding = nn.Parameter(torch.zeros(77, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(nn.Module() for _ in range(layers))
        for block in self.transformer.resblocks:
            block.attn = nn.MultiheadAttention(width, heads, batch_first=True)
            block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.mlp = nn.Module()
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, 48), nn.Linear(48, width)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, projection))
        _shake(self, seed)

    @torch.no_grad()
    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(last but one layer, projected end token after the final norm)."""
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((77, 77), -torch.inf).triu(1)
        states = []
        for block in self.transformer.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
            x = x + block.mlp.c_proj(torch.nn.functional.gelu(block.mlp.c_fc(block.ln_2(x))))
            states.append(x)
        end = self.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)]
        return states[-2], end @ self.text_projection


def _ids(prompts: list[str], pad: int, start: int = 0) -> torch.Tensor:
    """Rows of 77: begin, 75 of the prompt from ``start``, end, padding."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(BUNDLED))
    rows = []
    for prompt in prompts:
        text = tokenizer(prompt, add_special_tokens=False)["input_ids"][start : start + 75]
        row = [BEGIN, *text, END]
        rows.append(row + [pad] * (77 - len(row)))
    return torch.tensor(rows)


@torch.no_grad()
def _run(model, ids: torch.Tensor):
    out = getattr(model, "text_model", model)(input_ids=ids, output_hidden_states=True, return_dict=True)
    end = (ids == END).int().argmax(1)
    return out.last_hidden_state, out.hidden_states[-2], out.last_hidden_state[torch.arange(len(ids)), end]


class Zoo:
    """Every layout on disk, with the models it was written from."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.small = _clip(64, 2, 1)
        self.big = OpenClip(128, 3, 2, 24, 2)
        big = {k: v for k, v in self.big.state_dict().items()}
        self.sd1 = root / "sd1.safetensors"
        unet = {"model.diffusion_model.out.2.weight": torch.zeros(4)}
        save_file({**_clip_file(self.small, "cond_stage_model.transformer.text_model."), **unet}, self.sd1)
        self.sd2 = root / "sd2.safetensors"
        save_file({**{"cond_stage_model.model." + k: v for k, v in big.items()}, **unet}, self.sd2)
        self.sdxl = root / "sdxl.safetensors"
        save_file(
            {
                **_clip_file(self.small, "conditioner.embedders.0.transformer.text_model."),
                **{"conditioner.embedders.1.model." + k: v for k, v in big.items()},
            },
            self.sdxl,
        )
        self.clip_g = _clip(96, 2, 3, "gelu", project=True)
        self.t5 = _t5(4, width=176)

        self.sd1_dir = root / "sd1"
        _save(self.small, self.sd1_dir / "text_encoder")
        _words(self.sd1_dir / "tokenizer")
        self._index(self.sd1_dir, "StableDiffusionPipeline")

        self.sd2_dir = root / "sd2"
        self.clip_h = _clip(64, 2, 5, "gelu")
        _save(self.clip_h, self.sd2_dir / "text_encoder")
        _words(self.sd2_dir / "tokenizer", pad="!")
        self._index(self.sd2_dir, "StableDiffusionPipeline")

        self.sdxl_dir = root / "sdxl"
        _save(self.small, self.sdxl_dir / "text_encoder")
        _save(self.clip_g, self.sdxl_dir / "text_encoder_2")
        _words(self.sdxl_dir / "tokenizer")
        _words(self.sdxl_dir / "tokenizer_2", pad="!")
        self._index(self.sdxl_dir, "StableDiffusionXLPipeline")

        self.sd3_dir = root / "sd3"
        shutil.copytree(self.sdxl_dir, self.sd3_dir)
        _save(self.t5, self.sd3_dir / "text_encoder_3")
        _t5_words(self.sd3_dir / "tokenizer_3")
        self._index(self.sd3_dir, "StableDiffusion3Pipeline")

        self.flux_dir = root / "flux"
        shutil.copytree(self.sd1_dir, self.flux_dir)
        _save(self.t5, self.flux_dir / "text_encoder_2")
        _t5_words(self.flux_dir / "tokenizer_2")
        self._index(self.flux_dir, "FluxPipeline")

        self.t5_dir = _t5_words(_save(_t5(6), root / "t5"))
        self.bert = _shake(
            transformers.BertModel(
                transformers.BertConfig(
                    vocab_size=40,
                    hidden_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=32,
                    max_position_embeddings=32,
                )
            ),
            7,
        )
        self.bert_dir = _save(self.bert, root / "bert")
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *T5_WORDS, "##s"]
        (self.bert_dir / "vocab.txt").write_text("\n".join(vocabulary))
        (self.bert_dir / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 32})
        )

    @staticmethod
    def _index(folder: Path, cls: str) -> None:
        (folder / "model_index.json").write_text(json.dumps({"_class_name": cls}))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return Zoo(tmp_path_factory.mktemp("encoders"))


FAMILIES = {
    "sd1": "sd1",
    "sd2": "sd2",
    "sdxl": "sdxl",
    "sd1_dir": "sd1",
    "sd2_dir": "sd2",
    "sdxl_dir": "sdxl",
    "sd3_dir": "sd3",
    "flux_dir": "flux",
    "t5_dir": "t5",
    "bert_dir": "bert",
}


@pytest.fixture(params=sorted(FAMILIES))
def any_encoder(request: pytest.FixtureRequest, zoo: Zoo) -> encoders.Encoder:
    encoder = encoders.load(getattr(zoo, request.param))
    assert encoder.family == FAMILIES[request.param]
    return encoder


def _close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


# --- what holds for every family ---------------------------------------------------------------------------------


def test_every_family_gives_plain_tensors_and_a_string_per_token(any_encoder: encoders.Encoder) -> None:
    for prompt in (*PROMPTS, LONG):
        c = any_encoder([prompt])
        assert torch.isfinite(c.tokens).all()
        assert not c.tokens.requires_grad and not c.tokens.is_inference()
        strings = any_encoder.token_strings(prompt)
        assert len(strings) == c.tokens.shape[1]
        assert all(isinstance(s, str) for s in strings)
    assert "house" in any_encoder.token_strings(PROMPTS[0])


def test_a_row_does_not_depend_on_the_batch(any_encoder: encoders.Encoder) -> None:
    prompts = [*PROMPTS, LONG, PROMPTS[0]]
    batch = any_encoder(prompts)
    for i, prompt in enumerate(prompts):
        alone = any_encoder([prompt])
        # With several spaces, longer CLIP parts push the T5 rows down: compare space by space.
        for here, there in zip(alone.spaces, batch.spaces, strict=True):
            rows = alone.tokens[:, here.rows]
            _close(batch.tokens[i, there.rows][: rows.shape[1]], rows[0])
            assert torch.equal(batch.mask[i, there.rows][: rows.shape[1]], alone.mask[0, here.rows])
        if alone.pooled is not None:
            _close(batch.pooled[i], alone.pooled[0])


def test_ten_thousand_words_are_read_to_the_end(any_encoder: encoders.Encoder) -> None:
    words = "red house " * 5000
    one, other = any_encoder([words + "sea"]), any_encoder([words + "cat"])
    assert one.tokens.shape[1] > 10_000
    assert torch.isfinite(one.tokens).all()
    assert not torch.equal(one.tokens, other.tokens)


def test_text_that_is_not_valid_unicode_is_read(any_encoder: encoders.Encoder) -> None:
    assert torch.isfinite(any_encoder(["a red \ud800 house"]).tokens).all()


@pytest.mark.parametrize("prompts", [[], "a house", [None]])
def test_prompts_must_be_a_list_of_text(zoo: Zoo, prompts: object) -> None:
    with pytest.raises(EncoderError, match="list of one or more prompts"):
        encoders.load(zoo.sd1)(prompts)


def test_the_fingerprint_is_taken_once_and_goes_along(zoo: Zoo) -> None:
    encoder = encoders.load(zoo.sd1)
    found = encoder.fingerprint()
    assert encoder.fingerprint() is found
    assert encoder(["a house"]).encoder is found
    assert encoders.load(zoo.sd1_dir).fingerprint().matches(found)
    assert not encoders.load(zoo.sd2_dir).fingerprint().matches(found)


def test_half_precision(zoo: Zoo) -> None:
    for path in (zoo.sd1, zoo.sd1_dir):
        c = encoders.load(path, dtype=torch.bfloat16)(PROMPTS)
        assert c.tokens.dtype == torch.bfloat16
        _close(c.tokens.float(), encoders.load(path)(PROMPTS).tokens, 0.3)


# --- checkpoints -------------------------------------------------------------------------------------------------


def test_sd1_is_the_last_layer_after_the_final_norm(zoo: Zoo) -> None:
    c = encoders.load(zoo.sd1)(PROMPTS)
    _close(c.tokens, _run(zoo.small, _ids(PROMPTS, END))[0])
    assert c.pooled is None
    assert not c.mask[:, 0].any() and c.mask[:, 1:].all()


def test_checkpoint_and_directories_agree(zoo: Zoo) -> None:
    of_file, of_pipeline = encoders.load(zoo.sd1)(PROMPTS), encoders.load(zoo.sd1_dir)(PROMPTS)
    alone = encoders.load(zoo.sd1_dir / "text_encoder")
    assert alone.family == "clip"
    _close(of_file.tokens, of_pipeline.tokens)
    _close(of_file.tokens, alone(PROMPTS).tokens)


def test_old_layout_half_precision_and_position_ids(zoo: Zoo, tmp_path: Path) -> None:
    state = {k: v.half() for k, v in _clip_file(zoo.small, "cond_stage_model.transformer.").items()}
    state["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, tmp_path / "old.safetensors")
    c = encoders.load(tmp_path / "old.safetensors")(PROMPTS)
    assert c.tokens.dtype == torch.float32
    _close(c.tokens, encoders.load(zoo.sd1)(PROMPTS).tokens, 2e-2)


def test_sd2_is_the_last_but_one_layer_after_the_final_norm(zoo: Zoo) -> None:
    hidden, _ = zoo.big(_ids(PROMPTS, 0))
    c = encoders.load(zoo.sd2)(PROMPTS)
    _close(c.tokens, zoo.big.ln_final(hidden).detach())
    assert c.pooled is None


def test_sdxl_is_both_encoders_side_by_side(zoo: Zoo) -> None:
    hidden, projected = zoo.big(_ids(PROMPTS, 0))
    c = encoders.load(zoo.sdxl)(PROMPTS)
    _close(c.tokens[..., :64], _run(zoo.small, _ids(PROMPTS, END))[1])
    _close(c.tokens[..., 64:], hidden)
    _close(c.pooled, projected)


def test_a_projection_that_is_stored_as_a_linear_layer(zoo: Zoo, tmp_path: Path) -> None:
    state = load_file(zoo.sdxl)
    plain = state.pop("conditioner.embedders.1.model.text_projection")
    state["conditioner.embedders.1.model.text_projection.weight"] = plain.T.contiguous()
    save_file(state, tmp_path / "other.safetensors")
    _close(encoders.load(tmp_path / "other.safetensors")(PROMPTS).pooled, encoders.load(zoo.sdxl)(PROMPTS).pooled)


def test_only_the_text_encoder_is_read(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = checkpoint.safe_open

    class Spy:
        def __init__(self, *args: object, **options: object) -> None:
            self.file = real(*args, **options)

        def __enter__(self) -> Spy:
            self.inner = self.file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.file.__exit__(*error)

        def keys(self) -> list[str]:
            return self.inner.keys()

        def get_slice(self, key: str) -> object:
            read.append(key)
            return self.inner.get_slice(key)

        def get_tensor(self, key: str) -> torch.Tensor:
            read.append(key)
            return self.inner.get_tensor(key)

    monkeypatch.setattr(checkpoint, "safe_open", Spy)
    encoders.load(zoo.sd1)
    assert read and all(k.startswith("cond_stage_model.") for k in read)


def test_heads_come_from_the_sidecar_where_there_is_one(zoo: Zoo, tmp_path: Path) -> None:
    model = _clip(64, 2, 8, heads=4)
    path = tmp_path / "world.safetensors"
    save_file(_clip_file(model, "cond_stage_model.transformer.text_model."), path)
    expected = _run(model, _ids(PROMPTS, END))[0]
    assert not torch.allclose(encoders.load(path)(PROMPTS).tokens, expected, atol=1e-3)
    path.with_suffix(".json").write_text(json.dumps({"description": "mine", "num_attention_heads": 4}))
    _close(encoders.load(path)(PROMPTS).tokens, expected)
    for part in ("text_encoder", "text"):
        path.with_suffix(".json").write_text(json.dumps({part: {"num_attention_heads": 4}}))
        _close(encoders.load(path)(PROMPTS).tokens, expected)
    path.with_suffix(".json").write_text(json.dumps({"num_attention_heads": 5}))
    with pytest.raises(EncoderError, match="5 attention heads"):
        encoders.load(path)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(EncoderError, match="not JSON"):
        encoders.load(path)


# --- chunks ------------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_chunks_encoded_apart(zoo: Zoo) -> None:
    for path, pad in ((zoo.sd1, END), (zoo.sd2, 0)):
        c = encoders.load(path)([LONG])
        assert c.tokens.shape[1] == 3 * 77
        if path == zoo.sd1:
            for k in range(3):
                expected = _run(zoo.small, _ids([LONG], pad, 75 * k))[0][0]
                _close(c.tokens[0, 77 * k : 77 * (k + 1)], expected)
        assert [i for i in range(3 * 77) if not c.mask[0, i]] == [0, 77, 154]


@pytest.mark.parametrize(("words", "chunks"), [(0, 1), (74, 1), (75, 1), (76, 2), (150, 2), (151, 3)])
def test_chunk_borders(zoo: Zoo, words: int, chunks: int) -> None:
    assert encoders.load(zoo.sd1)(["house " * words]).tokens.shape[1] == 77 * chunks


def test_pooled_is_of_the_first_chunk(zoo: Zoo) -> None:
    encoder = encoders.load(zoo.sdxl)
    first = encoder(["house " * 75])
    longer = encoder(["house " * 75 + "sea"])
    _close(longer.pooled, first.pooled)
    assert longer.tokens.shape[1] == 2 * first.tokens.shape[1]


def test_a_shorter_prompt_is_filled_with_empty_chunks(zoo: Zoo) -> None:
    encoder = encoders.load(zoo.sd1)
    c = encoder(["a house", LONG])
    empty = encoder([""]).tokens[0]
    _close(c.tokens[0, 77:154], empty)
    _close(c.tokens[0, 154:], empty)


def test_clip_token_strings(zoo: Zoo) -> None:
    strings = encoders.load(zoo.sd2).token_strings("A Cat 🐱")
    assert strings[:5] == ["<|startoftext|>", "a", "cat", "🐱", "<|endoftext|>"]
    assert set(strings[5:]) == {""}


# --- pipelines ---------------------------------------------------------------------------------------------------


def test_sd2_pipeline_pads_with_zero(zoo: Zoo) -> None:
    _close(encoders.load(zoo.sd2_dir)(PROMPTS).tokens, _run(zoo.clip_h, _ids(PROMPTS, 0))[0])


def test_sdxl_pipeline(zoo: Zoo) -> None:
    c = encoders.load(zoo.sdxl_dir)(PROMPTS)
    _, hidden, pooled = _run(zoo.clip_g, _ids(PROMPTS, 0))
    _close(c.tokens[..., :64], _run(zoo.small, _ids(PROMPTS, END))[1])
    _close(c.tokens[..., 64:], hidden)
    _close(c.pooled, zoo.clip_g.text_projection(pooled).detach())


def test_sd3_is_clip_rows_then_t5_rows(zoo: Zoo) -> None:
    c = encoders.load(zoo.sd3_dir)(PROMPTS)
    assert c.tokens.shape == (3, 77 + 77, 176)
    clip, t5 = c.spaces
    assert (clip.name, t5.name) == ("clip", "t5")
    _close(c.tokens[:, clip.rows, clip.channels], encoders.load(zoo.sdxl_dir)(PROMPTS).tokens)
    assert not c.tokens[:, clip.rows, 160:].any()
    small, big = _run(zoo.small, _ids(PROMPTS, END))[2], _run(zoo.clip_g, _ids(PROMPTS, 0))[2]
    _close(c.pooled, torch.cat([small, zoo.clip_g.text_projection(big)], 1).detach())
    ids = torch.zeros(1, 77, dtype=torch.long)
    ids[0, :7] = torch.tensor([3, 4, 5, 6, 7, 8, 1])
    with torch.no_grad():
        expected = zoo.t5(input_ids=ids).last_hidden_state
    _close(c.tokens[:1, t5.rows], expected)
    assert c.mask[0, t5.rows].all()  # attended padding carries the sentence


def test_sd3_without_t5_is_clip_rows_only(zoo: Zoo, tmp_path: Path) -> None:
    shutil.copytree(zoo.sdxl_dir, tmp_path / "sd3")
    zoo._index(tmp_path / "sd3", "StableDiffusion3Pipeline")
    c = encoders.load(tmp_path / "sd3")(PROMPTS)
    assert c.tokens.shape == (3, 77, 4096)
    assert [s.name for s in c.spaces] == ["clip"]


def test_flux_is_t5_rows_and_pooled_clip(zoo: Zoo) -> None:
    c = encoders.load(zoo.flux_dir)(PROMPTS)
    assert c.tokens.shape == (3, 256, 176)
    _close(c.pooled, _run(zoo.small, _ids(PROMPTS, END))[2])
    assert c.mask.all()
    assert encoders.load(zoo.flux_dir)([" ".join(["red house"] * 200)]).tokens.shape[1] == 401


# --- encoders on their own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ["T5EncoderModel", "T5ForConditionalGeneration", "UMT5EncoderModel"])
def test_t5(tmp_path: Path, cls: str) -> None:
    if not hasattr(transformers, cls):
        pytest.skip(f"this transformers has no {cls}")
    model = _t5(9, cls)
    _t5_words(_save(model, tmp_path / "t5"))
    encoder = encoders.load(tmp_path / "t5")
    c = encoder(["a red house", "sea"])
    with torch.no_grad():
        stack = getattr(model, "encoder", model)
        expected = stack(input_ids=torch.tensor([[3, 4, 5, 1]])).last_hidden_state
    _close(c.tokens[:1], expected)
    assert c.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert not c.tokens[1, 2:].any()
    assert encoder.token_strings("a red house") == ["a", "red", "house", "</s>"]


def test_bert_begin_and_end_do_not_move(zoo: Zoo) -> None:
    encoder = encoders.load(zoo.bert_dir)
    c = encoder(["a red house", "seas"])
    with torch.no_grad():
        expected = zoo.bert(input_ids=torch.tensor([[2, 5, 6, 7, 3]])).last_hidden_state
    _close(c.tokens[:1], expected)
    assert c.mask.tolist() == [[False, True, True, True, False], [False, True, True, False, False]]
    assert encoder.token_strings("seas") == ["[CLS]", "sea", "##s", "[SEP]"]


def test_bert_reads_a_long_prompt_in_windows(zoo: Zoo) -> None:
    encoder = encoders.load(zoo.bert_dir)
    c = encoder(["house " * 31])
    assert c.tokens.shape[1] == 32 + 3
    _close(c.tokens[:, 32:], encoder(["house"]).tokens)
    assert (~c.mask[0]).nonzero().flatten().tolist() == [0, 31, 32, 34]


def test_clip_model_with_vision_tower(zoo: Zoo, tmp_path: Path) -> None:
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    config = transformers.CLIPConfig(text_config=zoo.small.config.to_dict(), vision_config=vision, projection_dim=24)
    model = _shake(transformers.CLIPModel(config), 10)
    _words(_save(model, tmp_path / "clip"))
    encoder = encoders.load(tmp_path / "clip")
    assert (encoder.family, encoder.name) == ("clip", "clip")
    _close(encoder(PROMPTS).tokens, _run(model.text_model, _ids(PROMPTS, END))[0])


def test_weights_of_a_variant_only(zoo: Zoo, tmp_path: Path) -> None:
    shutil.copytree(zoo.sd1_dir, tmp_path / "sd1")
    weights = tmp_path / "sd1" / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("model.fp16.safetensors"))
    _close(encoders.load(tmp_path / "sd1")(PROMPTS).tokens, encoders.load(zoo.sd1)(PROMPTS).tokens)


def test_a_tokenizer_can_be_given(zoo: Zoo, tmp_path: Path) -> None:
    words = _words(tmp_path / "words")
    _close(encoders.load(zoo.sd1, tokenizer=words)(PROMPTS).tokens, encoders.load(zoo.sd1)(PROMPTS).tokens)
    with pytest.raises(EncoderError, match="tokenizer directory"):
        encoders.load(zoo.sd1, tokenizer=_t5_words(tmp_path / "other"))
    with pytest.raises(EncoderError, match="holds no tokenizer"):
        encoders.load(zoo.sd1, tokenizer=tmp_path)


# --- refusals ----------------------------------------------------------------------------------------------------


def test_refusals_are_of_the_package() -> None:
    assert issubclass(EncoderError, SafeRegionError) and issubclass(EncoderError, ValueError)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="does not exist"):
        encoders.load(tmp_path / "no.safetensors")


def test_a_directory_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no text encoder"):
        encoders.load(tmp_path)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "MODEL.CKPT"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(EncoderError, match="pickle"):
        encoders.load(tmp_path / name)


def test_a_directory_of_pickles(zoo: Zoo, tmp_path: Path) -> None:
    shutil.copytree(zoo.sd1_dir / "text_encoder", tmp_path / "te")
    (tmp_path / "te" / "model.safetensors").rename(tmp_path / "te" / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="pickle"):
        encoders.load(tmp_path / "te")


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(EncoderError, match="no .safetensors"):
        encoders.load(tmp_path / "model.gguf")


@pytest.mark.parametrize("kept", [0, 4, 100, 100_000])
def test_a_truncated_checkpoint(zoo: Zoo, tmp_path: Path, kept: int) -> None:
    (tmp_path / "half.safetensors").write_bytes(zoo.sd1.read_bytes()[:kept])
    with pytest.raises(EncoderError, match="not a whole"):
        encoders.load(tmp_path / "half.safetensors")


def test_a_truncated_directory(zoo: Zoo, tmp_path: Path) -> None:
    shutil.copytree(zoo.sd1_dir / "text_encoder", tmp_path / "te")
    weights = tmp_path / "te" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(EncoderError, match="te"):
        encoders.load(tmp_path / "te")


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("sd1", "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.k_proj.bias"),
        ("sd1", "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"),
        ("sd2", "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"),
        ("sdxl", "conditioner.embedders.1.model.text_projection.weight"),
    ],
)
def test_a_missing_tensor_is_named(zoo: Zoo, tmp_path: Path, source: str, missing: str) -> None:
    state = load_file(getattr(zoo, source))
    state.pop(missing, None)
    state.pop(missing.removesuffix(".weight"), None)
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(EncoderError, match=missing.replace(".", r"\.")):
        encoders.load(tmp_path / "part.safetensors")


def test_a_missing_tensor_of_a_directory_is_named(zoo: Zoo, tmp_path: Path) -> None:
    shutil.copytree(zoo.sd1_dir / "text_encoder", tmp_path / "te")
    weights = tmp_path / "te" / "model.safetensors"
    state = load_file(weights)
    del state[next(k for k in state if k.endswith("layers.1.mlp.fc1.bias"))]
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"layers\.1\.mlp\.fc1\.bias"):
        encoders.load(tmp_path / "te")


def test_a_misshapen_tensor(zoo: Zoo, tmp_path: Path) -> None:
    state = load_file(zoo.sd1)
    key = "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.bias"
    state[key] = torch.zeros(7)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(EncoderError, match=r"fc1\.bias.*\[7\]"):
        encoders.load(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("model.diffusion_model.out.2.weight", "no text encoder"),
        ("conditioner.embedders.0.model.ln_final.weight", "refiner"),
        ("text_encoders.clip_l.transformer.text_model.final_layer_norm.weight", "diffusers directory"),
    ],
)
def test_checkpoints_of_other_families(tmp_path: Path, key: str, says: str) -> None:
    save_file({key: torch.zeros(4)}, tmp_path / "other.safetensors")
    with pytest.raises(EncoderError, match=says):
        encoders.load(tmp_path / "other.safetensors")


def test_a_width_without_known_heads(tmp_path: Path) -> None:
    save_file(_clip_file(_clip(40, 1, 11), "cond_stage_model.transformer.text_model."), tmp_path / "w.safetensors")
    with pytest.raises(EncoderError, match="num_attention_heads"):
        encoders.load(tmp_path / "w.safetensors")


def test_a_model_that_is_no_text_encoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(EncoderError, match="gpt2.*known are.*clip.*t5.*bert"):
        encoders.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(EncoderError, match="model_type"):
        encoders.load(tmp_path)


def test_a_pipeline_of_another_family(zoo: Zoo, tmp_path: Path) -> None:
    shutil.copytree(zoo.sd1_dir, tmp_path / "other")
    zoo._index(tmp_path / "other", "StableCascadePipeline")
    with pytest.raises(EncoderError, match="StableCascadePipeline.*known are SD1"):
        encoders.load(tmp_path / "other")


def test_a_device_that_is_not_here(zoo: Zoo) -> None:
    with pytest.raises(EncoderError, match="device"):
        encoders.load(zoo.sd1, device="nowhere")


def test_without_transformers(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for path in (zoo.sd1, zoo.sd1_dir, zoo.t5_dir):
        with pytest.raises(EncoderError, match="needs transformers: pip install"):
            encoders.load(path)
