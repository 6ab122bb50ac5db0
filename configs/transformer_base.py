"""Transformer base of Attention Is All You Need (Vaswani et al. 2017, Table 3).

    python -m trainer.main --strategy=mirrored --config=configs/transformer_base.py \\
        --precision=mixed_bfloat16 --data_dir=DATA --model_dir=MODEL
"""

from configs.schema import Config


def get_config() -> Config:
    """Return the defaults of the schema, which are the paper's base model and its training.

    100,000 steps of 24,576 target positions: 96 rows of 256, for any number of replicas that
    divides 96.
    """
    return Config()
