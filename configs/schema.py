"""What a configuration may say: typed, documented and validated.

A configuration file is a Python file with `get_config()`, which returns a `Config`. Every field can
be set on the command line too: `--config.train.steps=500`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints


@dataclass(slots=True)  # so that a misspelt field is an error
class ModelConfig:
    """The Transformer. The defaults are "base" of Attention Is All You Need (Table 3)."""

    width: int = 512
    """Size of the embeddings and of every layer's output (d_model)."""
    feed_forward: int = 2048
    """Inner size of the feed-forward layers (d_ff)."""
    heads: int = 8
    """Attention heads; a divisor of `width`."""
    kv_heads: int = 0
    """Heads of keys and values; a divisor of `heads`. 0: as many as `heads`. Fewer: grouped-query
    attention (Ainslie et al. 2023, section 2.2); 1: multi-query attention (Shazeer 2019, Fast
    Transformer Decoding, section 3). The cache of decoding shrinks with them."""
    qk_norm: bool = False
    """Normalise queries and keys, each head by itself (Henry et al. 2020, Query-Key Normalization;
    with weights as in Dehghani et al. 2023, Scaling Vision Transformers, section 2)."""
    attention_window: int = 0
    """Places before a token, and in an encoder after it, that self-attention sees (Beltagy et al.
    2020, Longformer, section 3.1); 0 for all. It saves time with `attention_block` only: else the
    others are masked."""
    attention_block: int = 0
    """Compute the attention of training and of whole rows in blocks of so many queries and keys,
    such as 64, without the matrix of all pairs (Dao et al. 2022, FlashAttention, section 3.1), and
    leave out blocks in which nothing is seen; 0 for the whole matrix. Shorter rows are computed
    whole. The same to rounding, but attention_dropout draws other masks."""
    encoder_layers: int = 6
    """Of translation and classification."""
    decoder_layers: int = 6
    """Of translation and language models."""
    share_layers: bool = False
    """Run one layer `encoder_layers` or `decoder_layers` times (Dehghani et al. 2019, Universal
    Transformers, section 2.1, without halting)."""
    dropout: float = 0.1
    """Rate on embeddings and on each sub-layer's output (P_drop)."""
    attention_dropout: float = 0.0
    """Rate on the attention weights."""
    activation_dropout: float = 0.0
    """Rate inside the feed-forward layers."""
    activation: str = "relu"
    """Of the feed-forward layers: "relu", as in the paper; "gelu" (Hendrycks and Gimpel 2016,
    section 2); "swiglu" (Shazeer 2020, GLU Variants, section 2), which has three matrices in place
    of two and no biases: two thirds of `feed_forward` keep the size."""
    norm: str = "post"
    """"post": normalise after the residual sum, as in the paper; "pre": before the sub-layer (Xiong
    et al. 2020, section 3); "deepnorm": after the sum, with a larger shortcut and smaller initial
    weights (Wang et al. 2022, DeepNet, section 3), for very deep stacks."""
    norm_kind: str = "layer"
    """"layer" (Ba et al. 2016, section 3) or "rms" (Zhang and Sennrich 2019, section 4)."""
    positions: str = "sinusoidal"
    """"sinusoidal" (the paper, section 3.5); "learned", a table (Radford et al. 2018, section 4.1);
    "t5", learned biases by distance (Raffel et al. 2020, section 2.1); "rotary" (Su et al. 2021,
    section 3.2.2); "alibi", fixed biases by distance (Press et al. 2022, section 3); "none"."""
    max_positions: int = 1024
    """Rows of the table of "learned" positions; no row of the data may be longer. Later positions
    in decoding get the last row."""
    tied_embeddings: str = "all"
    """"all": source, target and softmax share one matrix, as in the paper (section 3.4), which
    takes a joint vocabulary; "target": target and softmax; "none". A language model has one
    embedding, which "all" and "target" tie to the softmax."""
    pooling: str = "mean"
    """How a classifier makes one vector of a text: "mean", "max" or the "first" token's."""


@dataclass(slots=True)
class DataConfig:
    """How sentences become batches of a static shape."""

    batching: str = "packed"
    """"packed": several sentences a row, almost no padding; "bucketed": one sentence a row, rows
    of similar length together."""
    row_length: int = 256
    """Tokens a row holds on each side. Training sentences longer than that are left out, and
    counted in the log; of validation sentences the tail is cut off. Rows of the length that
    data_pipeline.main was given are read from files as needed; others are packed in memory."""
    attend_across_documents: bool = False
    """Of a language model: whether a token sees all that is before it in its packed row, as GPT-2
    and GPT-3 do (Brown et al. 2020, section 2.1 and appendix B), or only its own document."""
    buckets: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Row lengths of the "bucketed" form, rising; there the last one takes the part of
    `row_length`."""

    sampling_alpha: float = 0.0
    """Subword regularisation (Kudo 2018): cut every training sentence into pieces anew in each
    epoch, each segmentation with a probability proportional to its own to the power of this; 0.1 to
    0.5, and 0 is off. Takes a vocabulary of --model_type=unigram, a training split that fits into
    memory, and a few seconds of one CPU for every 10,000 pairs of an epoch."""
    stages: str = ""
    """Datasets for the first steps, DIRECTORY:STEP with commas between: the run reads each of them
    up to that step, and --data_dir's from then on. "data/mix:4000" is 4,000 steps on a mix, then
    clean text. All have the vocabularies of --data_dir (data_pipeline.main --tokenizer)."""

    @property
    def longest_row(self) -> int:
        """Tokens that the longest row holds on each side."""
        return self.row_length if self.batching == "packed" else self.buckets[-1]


@dataclass(slots=True)
class OptimizerConfig:
    """How gradients change the weights."""

    name: str = "adam"
    """"adam" (Kingma and Ba 2015); "adamw" (Loshchilov and Hutter 2019); "adafactor" (Shazeer and
    Stern 2018; hardly any memory, no momentum, does not use the betas and `epsilon`); "lion" (Chen
    et al. 2023; one number a weight, does not use `epsilon`); "muon" (Jordan 2024; hidden matrices
    by orthogonal updates, the rest by AdamW)."""
    schedule: str = "inverse_sqrt"
    """After the linear warm-up to `learning_rate`: "inverse_sqrt" falls with 1/sqrt(step) (the
    paper's, also called Noam), "cosine" and "linear" fall to 0, which they reach after the last of
    `train.steps`, "constant" stays."""
    learning_rate: float = 7e-4
    """The peak, reached after `warmup_steps`. The paper's base model peaks at 7e-4:
    512**-0.5 * 4000**-0.5. Adafactor's is relative to the size of the weights: 1e-2 is usual.
    Lion wants a third to a tenth of Adam's, Muon about Adam's."""
    warmup_steps: int = 4000
    beta_1: float = 0.9
    beta_2: float = 0.98
    epsilon: float = 1e-9
    clip_norm: float = 0.0
    """Largest norm of the whole gradient (of the mean loss per token); 0 for no clipping."""
    weight_decay: float = 0.0
    """Of "adamw", "lion" and "muon": share of the matrices' weights taken away per step, times the
    learning rate. Biases and norms do not decay."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the weights, such as 0.999, which is then what is
    evaluated and translated with; 0 for none."""


@dataclass(slots=True)
class TrainConfig:
    steps: int = 100_000
    """Optimizer steps in all."""
    batch_tokens: int = 24_576
    """Target positions in the global batch, all replicas together, padding included."""
    micro_batches: int = 1
    """Parts in which each replica works through its share of the batch, adding up gradients: the
    same update, in a fraction of the memory."""
    shard_optimizer: bool = False
    """Keep a slice of the optimizer's state and moving average on each replica, in place of a copy
    (ZeRO stage 1): the same update, with less memory. For "adam", "adamw" and "lion"."""
    remat: str = "none"
    """"layers": the backward pass computes each layer again, in place of keeping what it needs of
    the forward pass (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, section 4):
    less memory, about a third more work. "none": keep everything."""
    loss_chunk_tokens: int = 0
    """Tokens whose logits are in memory at a time, such as 1024; 0 for all of the micro-batch. The
    same loss and gradients to rounding, in far less memory where the vocabulary is large. On CPUs
    the order of additions, and so the rounding, may then differ from one start to the next."""
    reduce_dtype: str = "float32"
    """In which replicas and workers add up their gradients: "float32", or "bfloat16" for half the
    traffic, where a gradient keeps 8 bits of its fraction. Loss and metrics stay exact."""
    fast_dropout: str = "auto"
    """"on": dropout draws from XLA's default generator, which on a TPU is the hardware's; for
    compiled steps. Masks stay a function of (seed, step, replica, micro-batch, layer), on the same
    kind of device and the same version of the compiler. "off": Philox, which gives the same masks
    everywhere. "auto": on, on TPUs."""
    label_smoothing: float = 0.1
    rdrop_alpha: float = 0.0
    """Weight of R-Drop (Liang et al. 2021): two passes with other dropout masks must agree. Half
    as fast, and better on small corpora; 5 is the paper's for translation, 0 is off."""
    simcut_alpha: float = 0.0
    """Weight of SimCut (Gao et al. 2022): a second pass over the same sentences, some of whose
    token embeddings are cut to 0, must agree with the first. Half as fast; 3 is the paper's, 0 is
    off. For translation."""
    simcut_rate: float = 0.05
    """Share of the source and target tokens whose embeddings SimCut cuts to 0."""
    bad_steps: str = "abort"
    """What to do about a step whose loss or gradient is not finite, or above `loss_limit`. It never
    changes the weights, and its batch is saved in the model directory. "abort": end the run;
    "skip": go on with the next one; "rollback": go back to the last checkpoint, and on from there
    with the batches after the bad ones."""
    loss_limit: float = 0.0
    """Loss per target token above which a step is bad, such as twice that of guessing, which is the
    logarithm of the vocabulary's size; 0 for none."""
    replay_every: int = 0
    """Steps between two that are computed twice and compared bit for bit, to catch processors and
    memory that give wrong numbers without an error. A step that differs is not applied; the run
    ends and names what differs. 0 for never."""
    class_weights: str = "none"
    """Of a classifier: "none", or "balanced": a class with few texts counts as much in the loss of
    training as one with many, by n / (classes * texts of the class)."""
    seed: int = 1
    """Decides the initial weights, the order of the data and the dropout masks."""
    steps_per_loop: int = 50
    """Steps that run on the device between two reports to the host."""
    step_times: bool = False
    """Measure the time of every step, for "step_seconds_p50" and "_p95", in place of that of every
    call. An accelerator then has to wait for the host between two steps."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, which are also written at the end and after each evaluation."""
    keep_checkpoints: int = 5
    """Newest checkpoints that stay."""
    keep_best: int = 1
    """Best checkpoints by `best_metric` that stay besides."""
    keep_every_hours: float = 0.0
    """The first checkpoint, and then one every so many hours, stays besides; 0 for none."""
    average_checkpoints: int = 5
    """At the end of training, the mean of so many of the newest checkpoints is scored on the
    validation split, and is the model if it is the best; 0 for no average."""
    best_metric: str = ""
    """Metric of the validation split that decides which checkpoints are the best, and early
    stopping; empty for the task's own choice. For translation: "bleu" (its choice), "chrf",
    "token_accuracy", "loss", "nll", "perplexity"."""
    evaluate_every: int = 1000
    """Steps between evaluations of the validation split: loss, accuracy, BLEU."""
    early_stopping_patience: int = 0
    """Evaluations without a better `best_metric` after which training stops; 0 to train all
    steps."""


@dataclass(slots=True)
class DecodeConfig:
    beam_size: int = 4
    """Hypotheses kept; 1 is greedy decoding."""
    length_penalty: float = 0.6
    """alpha of Wu et al. 2016, equation 14: a score is divided by ((5 + length) / 6) ** alpha."""
    normalization: str = "gnmt"
    """"gnmt": the length penalty above; "length": a score is divided by length ** alpha."""
    coverage_penalty: float = 0.0
    """beta of the same equation, for source words that no target word attends to."""
    max_length_ratio: float = 2.0
    """A translation ends at this many times its sentence's length, plus `max_length_offset`
    tokens; both lengths count the end of the sentence."""
    max_length_offset: int = 16
    min_length: int = 1
    """Tokens that a translation has at least. With 0, the empty translation takes a place in the
    beam of nearly every sentence, and ends the search before a better one is found."""
    repetition_penalty: float = 1.0
    """Factor on the log probability of a token that the translation holds already."""
    no_repeat_ngram: int = 0
    """No translation holds the same n-gram of so many tokens twice; 0 for no such rule."""
    batch_tokens: int = 4096
    """Source positions decoded at a time, padding included."""
    validation_beam_size: int = 1
    """Beam for the BLEU during training; 1, greedy, is several times faster."""
    validation_sentences: int = 500
    """Sentences of the validation split decoded during training; 0 for all."""


@dataclass(slots=True)
class PrepareConfig:
    """The text that a configuration brings with it.

    trainer.main runs the data job on it where --data_dir is not given and the default directory
    holds no dataset yet. The fields are the flags of data_pipeline.main of the same names.
    """

    train: str = ""
    """SPEC, such as "builtin:train"; empty for a configuration that needs a dataset."""
    valid: str = "builtin:valid"
    test: str = "builtin:test"
    vocab_size: int = 4000
    model_type: str = "unigram"


@dataclass(slots=True)
class Config:
    """Everything that decides a training run."""

    task: str = "translation"
    """What is learned: the name of a task, see `trainer.tasks.lookup`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    prepare: PrepareConfig = field(default_factory=PrepareConfig)


_CHOICES = {
    "model.activation": ("relu", "gelu", "swiglu"),
    "model.norm": ("post", "pre", "deepnorm"),
    "model.norm_kind": ("layer", "rms"),
    "model.positions": ("sinusoidal", "learned", "t5", "rotary", "alibi", "none"),
    "model.pooling": ("mean", "max", "first"),
    "model.tied_embeddings": ("all", "target", "none"),
    "data.batching": ("packed", "bucketed"),
    "optimizer.name": ("adam", "adamw", "adafactor", "lion", "muon"),
    "optimizer.schedule": ("inverse_sqrt", "cosine", "linear", "constant"),
    "train.remat": ("none", "layers"),
    "train.reduce_dtype": ("float32", "bfloat16"),
    "train.fast_dropout": ("auto", "on", "off"),
    "train.class_weights": ("none", "balanced"),
    "train.bad_steps": ("abort", "skip", "rollback"),
    "decode.normalization": ("gnmt", "length"),
}
# Optimizers with a weight decay; the others refuse one.
_DECAYING = ("adamw", "lion", "muon")
# Those that look at one number of a weight at a time, not at whole matrices.
_SHARDABLE = ("adam", "adamw", "lion")
_BELOW_ONE = 1 - 2**-25  # from here on, float32 has 1
_MAY_BE_ZERO = {
    "model.kv_heads",
    "model.attention_window",
    "model.attention_block",
    "optimizer.clip_norm",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "train.loss_chunk_tokens",
    "data.sampling_alpha",
    "train.rdrop_alpha",
    "train.simcut_alpha",
    "train.loss_limit",
    "train.replay_every",
    "train.early_stopping_patience",
    "train.keep_every_hours",
    "train.average_checkpoints",
    "decode.length_penalty",
    "decode.coverage_penalty",
    "decode.max_length_offset",
    "decode.min_length",
    "decode.no_repeat_ngram",
    "decode.validation_sentences",
}


# The trainer checks these names: it knows the tasks and their metrics.
_NAMES = {"task", "train.best_metric"}
# The data job checks these.
_SPECS = ("prepare.train", "prepare.valid", "prepare.test", "prepare.model_type")
# And the trainer's input this one.
_STAGES = "data.stages"


def _check_field(name: str, value: Any) -> str | None:
    """Return what the value of a field must be, or None if it is fine."""
    if name in _NAMES or name in _SPECS or name == _STAGES:
        return None
    if name in _CHOICES:
        choices = _CHOICES[name]
        return None if value in choices else f"one of {', '.join(choices)}"
    if isinstance(value, bool):
        return None
    if name.endswith("dropout") or name in (
        "train.label_smoothing",
        "train.simcut_rate",
        "optimizer.beta_1",
        "optimizer.beta_2",
        "optimizer.ema_decay",
    ):
        return None if 0 <= value < _BELOW_ONE else "at least 0 and, in float32, less than 1"
    if isinstance(value, tuple):
        rising = all(a < b for a, b in zip((0, *value), value, strict=False))
        return None if value and rising else "rising positive numbers"
    if name == "train.seed":
        return None if 0 <= value < 2**31 else "at least 0 and less than 2**31"
    if value == math.inf:
        return "finite"
    if name in _MAY_BE_ZERO:
        return None if value >= 0 else "0 or more"
    return None if value > 0 else "more than 0"


def _check_type(default: Any, value: Any) -> str | None:
    """Return what the type of a field must be, or None; a configuration file is only Python."""
    if isinstance(default, tuple):
        good = isinstance(value, tuple) and all(isinstance(item, int) for item in value)
        return None if good else "a tuple of whole numbers"
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    return None if isinstance(value, kinds) else f"of type {type(default).__name__}"


def validate(config: Config) -> None:
    """Raise ValueError with one line that names the field, its value and what it may be."""
    defaults = flat(Config())
    for name, kind in get_type_hints(Config).items():
        group = getattr(config, name)
        if type(group) is not kind and name != "task":
            raise ValueError(f"--config.{name} is {group!r}, but must be a {kind.__name__}")
    for name, value in flat(config).items():
        wanted = _check_type(defaults[name], value) or _check_field(name, value)
        if wanted:
            raise ValueError(f"--config.{name} is {value!r}, but must be {wanted}")
    if config.optimizer.weight_decay and config.optimizer.name not in _DECAYING:
        *others, last = _DECAYING
        raise ValueError(
            f"--config.optimizer.weight_decay is for --config.optimizer.name={', '.join(others)} "
            f"or {last}, and the name is {config.optimizer.name}"
        )
    if config.train.rdrop_alpha and config.train.simcut_alpha:
        raise ValueError(
            "--config.train.rdrop_alpha and --config.train.simcut_alpha each ask for a second pass "
            "of their own: set one of them to 0"
        )
    if config.train.shard_optimizer and config.optimizer.name not in _SHARDABLE:
        *others, last = _SHARDABLE
        raise ValueError(
            f"--config.train.shard_optimizer is for --config.optimizer.name={', '.join(others)} or "
            f"{last}; {config.optimizer.name} needs whole matrices: leave it out"
        )
    if config.data.batching == "bucketed" and len(config.data.buckets) > 1:
        for name in ("train.loss_chunk_tokens", "model.attention_block"):
            if flat(config)[name]:
                raise ValueError(
                    f"--config.{name} is for rows of one length, and --config.data.buckets has "
                    f"{len(config.data.buckets)}: leave it out, use --config.data.batching=packed"
                )
    _validate_model(config.model, config.data.longest_row)


def _validate_model(model: ModelConfig, longest_row: int) -> None:
    if model.width % model.heads:
        raise ValueError(
            f"--config.model.width is {model.width}, but must be a multiple of "
            f"--config.model.heads, {model.heads}"
        )
    if model.kv_heads and model.heads % model.kv_heads:
        raise ValueError(
            f"--config.model.kv_heads is {model.kv_heads}, but must be a divisor of "
            f"--config.model.heads, {model.heads}"
        )
    if model.width % 2:
        raise ValueError(
            "--config.model.width must be even: positions are pairs of sine and cosine"
        )
    if model.attention_block and model.positions in ("t5", "alibi"):
        raise ValueError(
            f"--config.model.attention_block is {model.attention_block}, but must be 0 for "
            f"--config.model.positions={model.positions}, whose biases are a matrix of all pairs"
        )
    if model.positions == "rotary" and model.width // model.heads % 2:
        raise ValueError(
            f"--config.model.width / --config.model.heads is {model.width // model.heads}, but "
            f"must be even for --config.model.positions=rotary, which turns pairs of numbers"
        )
    if model.positions == "learned" and longest_row > model.max_positions:
        raise ValueError(
            f"--config.model.max_positions is {model.max_positions}, but must be at least "
            f"{longest_row}, the longest row"
        )


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested dictionaries, as config.json holds it."""
    return dataclasses.asdict(config)


def flat(config: Config) -> dict[str, Any]:
    """Return the fields by the names that they have on the command line, such as "train.steps"."""
    return flatten(to_dict(config))


def flatten(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `to_dict` made by the names that the fields have on the command line."""
    fields: dict[str, Any] = {}
    for group, value in groups.items():
        if isinstance(value, dict):
            fields |= {f"{group}.{key}": item for key, item in value.items()}
        else:
            fields[group] = value
    return fields


def from_dict(values: dict[str, Any]) -> Config:
    """Return the configuration that `to_dict` was given.

    Raises:
        ValueError: for a group or field that this version does not know.
    """
    config = Config()
    config.task = values.get("task", config.task)
    for group, fields in values.items():
        if group == "task":
            continue
        for key, value in fields.items():
            section = getattr(config, group, None)
            if not hasattr(section, key):
                raise ValueError(f"unknown configuration field {group}.{key}")
            setattr(section, key, tuple(value) if isinstance(value, list) else value)
    validate(config)
    return config
