"""A PyTorch training loop over `nn.Transformer`, as a contender (pip install torch==2.13.0).

Same sizes, dropout, loss, clipping, optimizer and schedule as ours. The batches hold sentences of
one length, the target side padded hardly at all. What differs: `nn.Transformer` ends each of its
two stacks in one more layer normalisation.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.comparison import Meter, Setting
from configs.schema import Config, OptimizerConfig
from data_pipeline.dataset.examples import Examples

# A compiled loop gets lengths that are multiples of this one: few shapes, all met in the warm-up.
_COMPILED_MULTIPLE = 8


class Translator(nn.Module):
    """Transformer with one embedding matrix for source, target and softmax.

    Args:
        config: `configs.schema.Config`.
        vocab_size: V.
        longest: tokens of the longest sentence on either side.
    """

    def __init__(self, config: Config, vocab_size: int, longest: int):
        super().__init__()
        model = config.model
        self.label_smoothing = config.train.label_smoothing
        self.scale = math.sqrt(model.width)
        self.embedding = nn.Embedding(vocab_size, model.width)
        nn.init.normal_(self.embedding.weight, std=model.width**-0.5)
        self.dropout = nn.Dropout(model.dropout)
        self.transformer = nn.Transformer(
            model.width,
            model.heads,
            model.encoder_layers,
            model.decoder_layers,
            model.feed_forward,
            model.dropout,
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=model.norm == "pre",
        )
        for layer in [*self.transformer.encoder.layers, *self.transformer.decoder.layers]:
            # PyTorch has one rate for all; ours drops at these two places only if told to.
            layer.dropout.p = model.activation_dropout
            layer.self_attn.dropout = model.attention_dropout
        for layer in self.transformer.decoder.layers:
            layer.multihead_attn.dropout = model.attention_dropout
        self.positions: torch.Tensor
        self.register_buffer("positions", _sinusoids(longest, model.width), persistent=False)

    def forward(self, source: torch.Tensor, shifted: torch.Tensor, target: torch.Tensor):
        """Mean loss per target token, label-smoothed.

        Args:
            source: int64 [B, S], 0 for padding.
            shifted: int64 [B, T], what the decoder reads.
            target: int64 [B, T], what it is to predict, 0 for padding.

        Returns:
            float32 scalar.
        """
        source_padding = source == 0
        length = shifted.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=source.device).triu(1)
        hidden = self.transformer(
            self._embed(source),
            self._embed(shifted),
            tgt_mask=causal,
            src_key_padding_mask=source_padding,
            tgt_key_padding_mask=shifted == 0,
            memory_key_padding_mask=source_padding,
            tgt_is_causal=True,
        )
        logits = functional.linear(hidden, self.embedding.weight).float()  # [B, T, V]
        return functional.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            ignore_index=0,
            label_smoothing=self.label_smoothing,
        )

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) * self.scale
        return self.dropout(x + self.positions[: tokens.shape[1]])


def _sinusoids(length: int, width: int) -> torch.Tensor:
    """float32 [length, width] (Attention Is All You Need, 3.5)."""
    wave = torch.exp(torch.arange(width // 2) * (-math.log(10_000.0) / (width // 2)))
    angle = torch.arange(length)[:, None] * wave
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Batches:
    """Batches of sentences of like length, in random order.

    Args:
        pairs: the corpus.
        batch_tokens: target positions a batch has at most, padding included.
        multiple: lengths are padded to a multiple of it.
        bos_id: opens what the decoder reads.
        eos_id: closes every sentence.
        seed: of the order.
    """

    def __init__(
        self, pairs: Examples, batch_tokens: int, multiple: int, bos_id: int, eos_id: int, seed: int
    ):
        self._pairs, self._batch_tokens = pairs, batch_tokens
        self._bos_id, self._eos_id = bos_id, eos_id
        self._rng = np.random.default_rng(seed)
        self._source = -(-(np.diff(pairs.offsets["source"]) + 1) // multiple) * multiple
        self._target = -(-(np.diff(pairs.offsets["target"]) + 1) // multiple) * multiple

    @property
    def longest(self) -> int:
        """Tokens of the longest sentence on either side, padded."""
        return int(max(self._source.max(), self._target.max()))

    def epoch(self) -> list[np.ndarray]:
        """The pairs of each batch; every pair is in one of them."""
        shuffled = self._rng.permutation(len(self._pairs))
        # Stable: pairs of the same lengths stay in random order.
        order = shuffled[np.lexsort((self._source[shuffled], self._target[shuffled]))]
        batches, start = [], 0
        while start < len(order):
            # The last of a batch is its longest: take as many as it leaves room for.
            rows = self._batch_tokens // self._target[order[start : start + self._batch_tokens]]
            size = int(np.count_nonzero(rows >= np.arange(1, len(rows) + 1)))
            batches.append(order[start : start + size])
            start += size
        return [batches[i] for i in self._rng.permutation(len(batches))]

    def collate(self, indices: np.ndarray) -> tuple[tuple[torch.Tensor, ...], int]:
        """The arguments of `Translator.forward` for these pairs, and their target tokens."""
        source = np.zeros([len(indices), self._source[indices].max()], np.int64)
        target = np.zeros([len(indices), self._target[indices].max()], np.int64)
        for row, index in enumerate(indices):
            example = self._pairs.example(index)
            for side, ids in zip((source, target), example.values(), strict=True):
                side[row, : len(ids)] = ids
                side[row, len(ids)] = self._eos_id
        shifted = np.roll(target, 1, axis=1)
        shifted[:, 0] = self._bos_id
        shifted[target == 0] = 0
        batch = tuple(torch.from_numpy(array) for array in (source, shifted, target))
        return batch, int(np.count_nonzero(target))

    def shapes(self) -> list[np.ndarray]:
        """One batch of each shape that an epoch has; all epochs have the same ones.

        Those come first whose two lengths differ: what torch.compile sees as equal in its first
        batch it takes to be equal always, and compiles the whole once more when it is not.
        """
        found = {}
        for batch in self.epoch():
            found[self._source[batch].max(), self._target[batch].max(), len(batch)] = batch
        return [found[shape] for shape in sorted(found, key=lambda shape: shape[0] == shape[1])]

    def endless(self) -> Iterator[np.ndarray]:
        """Epoch after epoch."""
        while True:
            yield from self.epoch()


class Trainer:
    """Model, optimizer and one train step.

    Args:
        setting: its variant is "eager" or "compile".
        longest: see `Translator`.
    """

    def __init__(self, setting: Setting, longest: int):
        config = setting.config
        torch.manual_seed(config.train.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.half = setting.precision == "mixed_bfloat16"
        self.clip_norm = config.optimizer.clip_norm
        vocab_size = setting.manifest.tokenizers["target"].vocab_size
        self.model = Translator(config, vocab_size, longest).to(self.device)
        compiles = setting.variant == "compile"
        self.loss = torch.compile(self.model, dynamic=True) if compiles else self.model
        self.optimizer = torch.optim.Adam(
            self.model.parameters(),
            lr=config.optimizer.learning_rate,
            betas=(config.optimizer.beta_1, config.optimizer.beta_2),
            eps=config.optimizer.epsilon,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _inverse_sqrt(step + 1, config.optimizer)
        )

    def step(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """One update; returns the loss, which nobody has waited for yet."""
        batch = tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            loss = self.loss(*batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm, foreach=True)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()


def _inverse_sqrt(number: int, config: OptimizerConfig) -> float:
    return min(number / config.warmup_steps, math.sqrt(config.warmup_steps / number))


def train(setting: Setting, meter: Meter) -> None:
    """Train until the meter says stop."""
    train_config, manifest = setting.config.train, setting.manifest
    multiple = _COMPILED_MULTIPLE if setting.variant == "compile" else 1
    batches = Batches(
        setting.pairs,
        train_config.batch_tokens,
        multiple,
        manifest.bos_id,
        manifest.eos_id,
        train_config.seed,
    )
    trainer = Trainer(setting, batches.longest)
    meter.describe(
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        version=f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads",
    )
    first, *others = batches.shapes()
    meter.first_step(trainer.step(batches.collate(first)[0]))
    if setting.variant == "compile":
        for indices in others:
            trainer.step(batches.collate(indices)[0])
    for indices in batches.endless():
        batch, tokens = batches.collate(indices)
        if not meter.after_step(tokens, trainer.step(batch)):
            return
