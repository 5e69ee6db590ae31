"""CLIP's text transformer with the parameter names of transformers, for training: no checks, no masks made anew."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = Attention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        h = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](h * torch.sigmoid(1.702 * h))


class TextNet(nn.Module):
    """Token ids [B, T] to the last hidden state [B, T, width], normalised."""

    def __init__(self, vocabulary: int, sizes: dict[str, Any]) -> None:
        super().__init__()
        width = sizes["hidden_size"]
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(vocabulary, width),
                "position_embedding": nn.Embedding(sizes["max_position_embeddings"], width),
            }
        )
        layers = [
            Layer(width, sizes["num_attention_heads"], sizes["intermediate_size"])
            for _ in range(sizes["num_hidden_layers"])
        ]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings["token_embedding"](ids)
        x = x + self.embeddings["position_embedding"].weight[: ids.shape[1]].to(x.dtype)
        for layer in self.encoder["layers"]:
            x = layer(x)
        return self.final_layer_norm(x)
