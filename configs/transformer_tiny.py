"""The tiny Transformer: 4 + 4 layers of width 128, 1.3 million parameters without embeddings.

python -m trainer.main --strategy=mirrored --config=configs/transformer_tiny.py --data_dir=DATA

20,000 steps of 4,096 target positions, 80 million tokens: 2 to 3 hours on two CPU cores (AVX-512).
configs/multi30k_en_de.py says what the model reaches on a real corpus.
"""

from configs.schema import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """Return the model of Wu et al. 2021 for small corpora, which trains on a laptop."""
    return Config(
        model=ModelConfig(
            width=128,
            feed_forward=256,
            heads=4,
            encoder_layers=4,
            decoder_layers=4,
            dropout=0.1,
        ),
        data=DataConfig(row_length=128),
        train=TrainConfig(
            steps=20_000,
            batch_tokens=4096,
            steps_per_loop=20,
            evaluate_every=500,
            checkpoint_every=250,
        ),
        optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=1000, clip_norm=1.0),
    )
