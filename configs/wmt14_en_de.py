"""WMT 2014, English to German: the base model as in Attention Is All You Need, section 5.

    python -m data_pipeline.main --train=text:train.en.gz,train.de.gz \\
        --valid=text:newstest2013.en,newstest2013.de --test=text:newstest2014.en,newstest2014.de \\
        --source_lang=en --target_lang=de --model_type=bpe --vocab_size=37000 --row_length=256 \\
        --output_dir=data/wmt14_en_de
    python -m trainer.main --strategy=mirrored --precision=mixed_bfloat16 \\
        --config=configs/wmt14_en_de.py
    python -m trainer.evaluate --model_dir=models/wmt14_en_de --split=test

The training text is Europarl v7, Common Crawl and News Commentary v9, 4.5 million pairs. The
configuration is for eight GPUs or a TPU slice; we have not trained it. The paper took 12 hours on
eight P100 GPUs and reports 27.3 BLEU of tokenized text with split compounds, a measure that gives
more than sacreBLEU's (Post 2018, A Call for Clarity in Reporting BLEU Scores).
"""

from configs import transformer_base
from configs.schema import Config, DecodeConfig


def get_config() -> Config:
    """Return the base model, with translations of up to 50 tokens more than the source (6.1)."""
    config = transformer_base.get_config()
    config.decode = DecodeConfig(max_length_ratio=1.0, max_length_offset=50)
    return config
