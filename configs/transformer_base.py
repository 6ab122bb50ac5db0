"""Transformer base of Attention Is All You Need (Vaswani et al. 2017, Table 3).

    python -m trainer.main --strategy=mirrored --config=configs/transformer_base.py \\
        --precision=mixed_bfloat16 --data_dir=DATA --model_dir=MODEL

The paper took 12 hours on eight P100 GPUs. We have not trained it to the end; docs/results.md has
its speed on a CPU, and what compilers predict for TPUs and GPUs. configs/wmt14_en_de.py is the
paper's experiment with it.
"""

from configs.schema import Config


def get_config() -> Config:
    """Return the defaults of the schema, which are the paper's base model and its training.

    100,000 steps of 24,576 target positions: 96 rows of 256, for any number of replicas that
    divides 96.
    """
    return Config()
