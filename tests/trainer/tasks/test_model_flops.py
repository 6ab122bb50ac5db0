"""FLOPs of the models against the matrix products in TensorFlow's graph."""

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset.manifest import SequenceInfo, SplitInfo, length_histogram
from trainer.model.decoder_only import DecoderOnly
from trainer.model.encoder_classifier import EncoderClassifier
from trainer.tasks import flops
from trainer.tasks.translation import FEATURES

VOCAB = 30
ROWS, SOURCE, TARGET = 3, 7, 5
# Every size has another number, so that one taken for another shows.
SIZES = {"width": 16, "feed_forward": 40, "heads": 2, "encoder_layers": 2, "decoder_layers": 3}
# One sentence pair a row, full length.
COUNTS = {
    "source_tokens": ROWS * SOURCE,
    "target_tokens": ROWS * TARGET,
    "source_pairs": ROWS * SOURCE * SOURCE,
    "target_pairs": ROWS * TARGET * TARGET,
    "cross_pairs": ROWS * TARGET * SOURCE,
}
PRODUCTS = {"MatMul": "transpose_a", "BatchMatMulV2": "adj_x"}


def product_flops(operation: tf.Operation) -> int:
    """FLOPs of a matrix product: two for each element of the result and each term of its sum."""
    transposed = operation.get_attr(PRODUCTS[operation.type])
    terms = operation.inputs[0].shape[-2 if transposed else -1]
    return 2 * terms * operation.outputs[0].shape.num_elements()


def graph_flops(function) -> int:
    """FLOPs of the matrix products in a concrete function's graph."""
    operations = function.graph.get_operations()
    types = {operation.type for operation in operations}
    hidden = [name for name in types if "Call" in name or "While" in name or "Einsum" in name]
    assert not hidden  # a product in there would not be counted
    return sum(product_flops(operation) for operation in operations if operation.type in PRODUCTS)


def functions_of(model):
    """Concrete functions: the model's forward pass, and forward and backward."""
    specs = [tf.TensorSpec([ROWS, length], tf.int32) for length in (SOURCE, SOURCE, TARGET, TARGET)]
    assert FEATURES == ("source", "source_segments", "target", "target_segments")
    variables = [variable.value for variable in model.trainable_variables]

    def gradients(*features):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(*features) ** 2)
        return tape.gradient(loss, variables)

    return [
        tf.function(function, autograph=False).get_concrete_function(*specs)
        for function in (lambda *features: model(*features), gradients)
    ]


@pytest.mark.parametrize(
    ("tied", "source_vocab"), [("all", None), ("target", None), ("none", None), ("target", 50)]
)
def test_flops_equal_the_products_in_the_graph(make_model, tied, source_vocab):
    model = make_model(source_vocab=source_vocab, tied_embeddings=tied, **SIZES)
    forward, backward = (graph_flops(function) for function in functions_of(model))
    assert flops.translation_flops(model.config, VOCAB, **COUNTS) == forward
    assert 3 * flops.translation_flops(model.config, VOCAB, **COUNTS) == backward


@pytest.mark.parametrize(
    "fields",
    [
        {"activation": "swiglu"},
        {"heads": 4, "kv_heads": 2},
        {"heads": 4, "kv_heads": 1, "qk_norm": True, "positions": "rotary"},
        {"positions": "t5", "share_layers": True, "attention_window": 2},
    ],
)
def test_flops_of_variants(make_model, fields):
    """Of every option that changes the products; the others must change nothing."""
    model = make_model(**{**SIZES, **fields})
    forward, backward = (graph_flops(function) for function in functions_of(model))
    assert flops.translation_flops(model.config, VOCAB, **COUNTS) == forward
    assert 3 * flops.translation_flops(model.config, VOCAB, **COUNTS) == backward


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"activation": "swiglu", "kv_heads": 1, "pooling": "max"},
        {"heads": 4, "kv_heads": 2, "qk_norm": True, "positions": "rotary", "pooling": "first"}
        | {"share_layers": True, "attention_window": 2, "norm": "deepnorm", "norm_kind": "rms"},
    ],
)
def test_flops_of_one_sequence(tiny_config, fields):
    """Language model and classifier, full rows."""
    config = tiny_config(model={**SIZES, **fields}).model
    counts = {"tokens": ROWS * SOURCE, "pairs": ROWS * SOURCE * SOURCE}
    specs = [tf.TensorSpec([ROWS, SOURCE], tf.int32)] * 2
    language_model = DecoderOnly(config, VOCAB)
    classifier = EncoderClassifier(config, VOCAB, 3)
    graphs = [
        tf.function(lambda *features, m=model: m(*features), autograph=False)
        for model in (language_model, classifier)
    ]
    found = [graph_flops(graph.get_concrete_function(*specs)) for graph in graphs]
    assert flops.language_model_flops(config, VOCAB, **counts) == found[0]
    assert flops.classifier_flops(config, 3, **counts) == found[1]


def test_flops_by_hand(tiny_config):
    """Width 16, feed-forward 24, one layer each, vocabulary 30; 2 source and 3 target tokens."""
    config = tiny_config().model
    counts = {"source_tokens": 2, "target_tokens": 3}
    pairs = {"source_pairs": 4, "target_pairs": 9, "cross_pairs": 6}
    encoder = 2 * 2 * (4 * 256 + 2 * 16 * 24) + 4 * 16 * 4
    decoder = 2 * 3 * (6 * 256 + 2 * 16 * 24) + 2 * 2 * 2 * 256 + 4 * 16 * (9 + 6)
    forward = flops.translation_flops(config, 30, **counts, **pairs)
    assert forward == encoder + decoder + 2 * 3 * 16 * 30 == 27_136


def split_of(lengths) -> SplitInfo:
    """The manifest's counts of pairs of so many (source, target) tokens."""
    lengths = np.asarray(lengths)
    sequences = {
        name: SequenceInfo.of_histogram(length_histogram(of_name))
        for name, of_name in zip(("source", "target"), lengths.T, strict=True)
    }
    return SplitInfo((), len(lengths), len(lengths), {}, sequences)


def test_split_equals_a_loop_over_its_sentences(tiny_config):
    """The longer a source the longer its target, by 3 to 6 tokens: then it is exact."""
    config = tiny_config(model=SIZES).model
    source = np.random.default_rng(1).integers(1, 60, 200)
    lengths = np.stack([source, source + 3 + source // 20], axis=1)
    total = tokens = 0.0
    for source, target in lengths + 1:  # with the end-of-sentence token
        total += 3 * flops.translation_flops(
            config,
            VOCAB,
            source_tokens=source,
            target_tokens=target,
            source_pairs=source * source,
            target_pairs=target * target,
            cross_pairs=target * source,
        )
        tokens += target
    assert flops.train_flops_of_split(config, VOCAB, split_of(lengths)) == pytest.approx(
        total / tokens, rel=1e-12
    )


def test_split_leaves_out_what_the_input_leaves_out(tiny_config):
    """Of a row of 8 tokens a sentence of 7 has the end-of-sentence token take the last."""
    config = tiny_config().model
    kept = [(2, 3), (7, 7)]
    rest = [(8, 9), (8, 11)]
    mean = flops.train_flops_of_split(config, VOCAB, split_of(kept))
    everything = split_of(kept + rest)
    assert flops.train_flops_of_split(config, VOCAB, everything, longest_row=8) == mean
    assert flops.train_flops_of_split(config, VOCAB, everything) != mean
    with pytest.raises(UsageError, match="no sentence pair"):
        flops.train_flops_of_split(config, VOCAB, split_of(rest), longest_row=8)
