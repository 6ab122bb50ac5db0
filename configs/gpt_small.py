"""GPT-2 small's shape (Radford et al. 2019, section 2.3): 124 million weights, 1,024 tokens a row.

    python -m data_pipeline.main --task=language_model --model_type=bpe --vocab_size=50000 \\
        --row_length=1024 --train='text:train-*.txt.zst' --valid=text:valid.txt \\
        --output_dir=data/gpt_small
    python -m trainer.main --strategy=tpu --precision=mixed_bfloat16 \\
        --config=configs/gpt_small.py

It is for accelerators. We have not trained it to the end, so there is no time and no score to
expect. A batch has half a million tokens, as GPT-3's smallest model had (Brown et al. 2020, table
2.1), in micro-batches: raise or lower `train.micro_batches` with the memory.
"""

from configs.schema import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def get_config() -> Config:
    """The optimizer's numbers are GPT-3's (Brown et al. 2020, appendix B)."""
    return Config(
        task="language_model",
        model=ModelConfig(
            width=768,
            feed_forward=3072,
            heads=12,
            decoder_layers=12,
            dropout=0.0,
            norm="pre",
            activation="gelu",
            positions="learned",
            max_positions=1024,
        ),
        data=DataConfig(row_length=1024, attend_across_documents=True),
        optimizer=OptimizerConfig(
            name="adamw",
            schedule="cosine",
            learning_rate=6e-4,
            warmup_steps=700,
            beta_2=0.95,
            epsilon=1e-8,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
        train=TrainConfig(
            steps=20_000,
            batch_tokens=524_288,
            micro_batches=8,
            label_smoothing=0.0,
            steps_per_loop=20,
            evaluate_every=1000,
            checkpoint_every=1000,
        ),
    )
