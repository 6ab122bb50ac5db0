"""A language model over characters, on the built-in English text.

    python -m trainer.main --strategy=mirrored --config=configs/char_lm.py
    python -m trainer.generate --model_dir=models/char_lm --prompt='Today is '

On two CPU cores (AVX-512) 2.4 minutes, and 0.89 bits a byte of the test text.

With a text of your own, in which blank lines separate documents:

    python -m data_pipeline.main --task=language_model --model_type=char --row_length=256 \\
        --train=text:train.txt --valid=text:valid.txt --output_dir=data/mine
    python -m trainer.main --strategy=mirrored --config=configs/char_lm.py \\
        --data_dir=data/mine --model_dir=models/mine
"""

from configs.schema import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PrepareConfig,
    TrainConfig,
)


def get_config() -> Config:
    """A small GPT: pre-norm, rotary positions, GELU."""
    return Config(
        task="language_model",
        model=ModelConfig(
            width=128,
            feed_forward=512,
            heads=4,
            decoder_layers=4,
            dropout=0.0,
            norm="pre",
            activation="gelu",
            positions="rotary",
        ),
        data=DataConfig(row_length=256),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule="cosine",
            learning_rate=2e-3,
            warmup_steps=100,
            beta_2=0.99,
            epsilon=1e-8,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=800,
            batch_tokens=4096,
            label_smoothing=0.0,
            steps_per_loop=20,
            evaluate_every=200,
            checkpoint_every=200,
            average_checkpoints=0,
        ),
        prepare=PrepareConfig(
            train="builtin:train?size=20000",
            valid="builtin:valid?size=500",
            test="builtin:test?size=500",
            model_type="char",
        ),
    )
