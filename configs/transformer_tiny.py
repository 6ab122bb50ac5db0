"""The tiny Transformer: 4 + 4 layers of width 128, about 1.3 million parameters and the embeddings.

python -m trainer.main --strategy=mirrored --config=configs/transformer_tiny.py --data_dir=DATA
"""

from configs.schema import Config, ModelConfig, OptimizerConfig


def get_config() -> Config:
    """The model of Wu et al. 2021 for small corpora; trains on a laptop."""
    return Config(
        model=ModelConfig(
            width=128,
            feed_forward=256,
            heads=4,
            encoder_layers=4,
            decoder_layers=4,
            dropout=0.1,
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=1000, clip_norm=1.0),
    )
