"""Transformer big of Attention Is All You Need (Vaswani et al. 2017, Table 3).

    python -m trainer.main --strategy=mirrored --config=configs/transformer_big.py \\
        --precision=mixed_bfloat16 --data_dir=DATA --model_dir=MODEL

The paper took 3.5 days on eight P100 GPUs, for 28.4 BLEU on newstest2014 from English to German. We
have not trained it to the end; docs/results.md has what compilers predict for TPUs and GPUs.
"""

from configs.schema import Config, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Return the paper's big model: 300,000 steps, peak rate 1024**-0.5 * 4000**-0.5."""
    return Config(
        model=ModelConfig(width=1024, feed_forward=4096, heads=16, dropout=0.3),
        optimizer=OptimizerConfig(learning_rate=4.94e-4, warmup_steps=4000),
        train=TrainConfig(steps=300_000),
    )
