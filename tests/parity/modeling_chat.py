"""A chat-format model as a checkpoint brings it along in code of its own: names and arithmetic of InternVL's release.

Tests copy this file into a checkpoint folder, where `--reference remote-code` runs it. Heads, patches and the pixel
shuffle have the sizes of `tests/checkpoints.py`; positions are resized to the frame's grid.
"""

import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM


class Config(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config: dict | None = None, llm_config: dict | None = None, **others: object):
        super().__init__(**others)
        self.vision_config, self.llm_config = vision_config or {}, llm_config or {}


class Embeddings(nn.Module):
    def __init__(self, width: int, grid: int, patch: int):
        super().__init__()
        self.grid = grid
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixels)
        first, grid = self.position_embedding[:, :1], self.position_embedding[:, 1:]
        square = grid.reshape(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = functional.interpolate(square, patches.shape[2:], mode="bicubic", align_corners=False)
        positions = torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)
        classes = self.class_embedding.expand(len(pixels), -1, -1)
        return torch.cat([classes, patches.flatten(2).transpose(1, 2)], dim=1) + positions


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        F, L, E = hidden.shape
        query, key, value = self.qkv(hidden).reshape(F, L, 3, self.heads, E // self.heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(seen.transpose(1, 2).reshape(F, L, E))


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(hidden)))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, inner)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attn(self.norm1(hidden)) * self.ls1
        return hidden + self.mlp(self.norm2(hidden)) * self.ls2


class Vision(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, inner: int, grid: int, patch: int):
        super().__init__()
        self.embeddings = Embeddings(width, grid, patch)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList([Layer(width, heads, inner) for _ in range(depth)])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        hidden = self.embeddings(pixels)
        for layer in self.encoder.layers:
            hidden = layer(hidden)
        return hidden


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config: Config):
        super().__init__(config)
        read = config.vision_config
        width, grid = read["hidden_size"], read["image_size"] // read["patch_size"]
        sizes = read["num_hidden_layers"], read["num_attention_heads"], read["intermediate_size"]
        self.vision_model = Vision(width, *sizes, grid, read["patch_size"])
        self.language_model = Qwen2ForCausalLM(Qwen2Config(**config.llm_config))
        D = config.llm_config["hidden_size"]
        self.mlp1 = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, D), nn.GELU(), nn.Linear(D, D))
        self.post_init()

    def extract_feature(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.vision_model(pixels)[:, 1:]
        F, L, E = features.shape
        side = int(L**0.5) // 2
        tokens = features.reshape(F, side, 2, side, 2, E).permute(0, 1, 3, 2, 4, 5).reshape(F, side * side, 4 * E)
        return self.mlp1(tokens)
