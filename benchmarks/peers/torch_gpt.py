"""A GPT in PyTorch, written as small ones usually are (pip install torch==2.13.0).

Same sizes as ours with `norm="pre"`, `positions="learned"` and GELU, on the same rows in the same
order. It starts as GPT-2 does (Radford et al. 2019, section 2.3): normal weights of 0.02, and those
that write into the residual stream divided by the root of their number.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from configs.schema import Config, ModelConfig, OptimizerConfig


class Block(nn.Module):
    """Causal self-attention and feed-forward, each around a shortcut."""

    def __init__(self, model: ModelConfig):
        super().__init__()
        self.heads, width = model.heads, model.width
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.inner = nn.Linear(width, model.feed_forward)
        self.outer = nn.Linear(model.feed_forward, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, D] to [B, L, D]."""
        batch, length, width = x.shape
        parts = self.query_key_value(self.first_norm(x)).split(width, dim=2)
        query, key, value = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in parts
        )  # [B, N, L, H] each
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.outer(functional.gelu(self.inner(self.second_norm(x))))


class GPT(nn.Module):
    """A decoder-only language model whose softmax is tied to its embedding."""

    def __init__(self, config: Config, vocab_size: int, bos_id: int):
        super().__init__()
        model = config.model
        self.bos_id = bos_id
        self.tokens = nn.Embedding(vocab_size, model.width)
        self.positions = nn.Embedding(config.data.row_length, model.width)
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.decoder_layers))
        self.norm = nn.LayerNorm(model.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("output.weight", "outer.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / math.sqrt(2 * model.decoder_layers) if writes else 0.02
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of rows, int64 [B, L] with 0 for padding, as float32."""
        shifted = functional.pad(text[:, :-1], (1, 0), value=self.bos_id)
        places = torch.arange(text.shape[1], device=text.device)
        x = self.tokens(shifted) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)  # [B, L, V]
        return functional.cross_entropy(
            logits.flatten(0, 1), text.flatten(), ignore_index=0, reduction="sum"
        )


class Trainer:
    """Model, AdamW and one train step.

    Args:
        config: sizes and optimizer.
        vocab_size: V.
        bos_id: the token that opens a row.
    """

    def __init__(self, config: Config, vocab_size: int, bos_id: int):
        torch.manual_seed(config.train.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = GPT(config, vocab_size, bos_id).to(self.device)
        self.options = config.optimizer
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.options.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self.options.learning_rate,
            betas=(self.options.beta_1, self.options.beta_2),
            eps=self.options.epsilon,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, _cosine(self.options, config.train.steps)
        )

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def step(self, text: np.ndarray) -> float:
        """Update on rows, int32 [B, L]; return the mean loss a token."""
        batch = torch.from_numpy(text.astype(np.int64)).to(self.device)
        loss = self.model(batch) / int(np.count_nonzero(text))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    @torch.no_grad()
    def loss(self, text: np.ndarray) -> float:
        """Return the summed loss of rows, int32 [B, L]."""
        return float(self.model(torch.from_numpy(text.astype(np.int64)).to(self.device)))


def _cosine(options: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """Return the share of the peak of `trainer.optim.schedule`, by the number of finished steps."""

    def share(done: int) -> float:
        number, warmup = done + 1, max(1, options.warmup_steps)
        progress = min(1.0, max(0.0, (number - warmup) / max(1.0, steps + 1 - warmup)))
        return min(1.0, number / warmup) * 0.5 * (1 + math.cos(math.pi * progress))

    return share
