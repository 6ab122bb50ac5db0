"""What is exported: the trainer's own step, for many replicas; what a TPU forbids, and where."""

import collections
import math
import re

import pytest
import tensorflow as tf

from configs import schema
from launch.compiler import programs
from launch.compiler.compiler import ALL_GATHER
from trainer.tasks.translation import Translation

ROWS, LENGTH, REPLICAS = 2, 8, 4
CONFIG = {
    "model": {"width": 16, "feed_forward": 24, "heads": 2, "encoder_layers": 1}
    | {"decoder_layers": 1},
    "data": {"row_length": LENGTH},
    "train": {"batch_tokens": ROWS * LENGTH * REPLICAS},
    "decode": {"beam_size": 2},
}


def make(task_class=Translation, **train) -> programs.Programs:
    config = schema.from_dict({**CONFIG, "train": CONFIG["train"] | train})
    task = task_class(config, 32, 32, joint=True)
    return programs.Programs(config, task, REPLICAS, "mixed_bfloat16", tpu=True)


def text_of(program: programs.Program) -> str:
    export = program._function.experimental_get_compiler_ir(*program._specs)
    return export(stage="stablehlo")


@pytest.fixture(scope="module")
def made():
    return make()


@pytest.fixture(scope="module")
def train_program(made):
    return made.train(ROWS, LENGTH)


def test_the_train_step_holds_reduction_and_update(made, train_program):
    program = train_program
    assert program.problems() == []
    text = text_of(program)
    weights = len(made.model.trainable_variables)
    # Each gradient and each sum is reduced; each weight, its two slots and two counters change.
    sums = len(Translation.SUMS) + 1  # and the empty rows
    assert text.count("stablehlo.all_reduce") == weights + sums
    assert "[[0, 1, 2, 3]]" in text
    assert text.count("may_alias") == 3 * weights + 2


def test_random_bits_and_reduction_as_configured(made, train_program):
    """By default the chip's own generator and float32, else Philox and bfloat16."""

    def found(program):
        text, one = text_of(program), r'"stablehlo.all_reduce".*?\) : \(tensor<(?:[\dx]*x)?(\w+)>\)'
        generator = re.search("algorithm = +DEFAULT", text)
        return bool(generator), collections.Counter(re.findall(one, text, re.DOTALL))

    weights, sums = len(made.model.trainable_variables), len(Translation.SUMS) + 1
    assert found(train_program) == (True, {"f32": weights + sums})
    other = make(fast_dropout="off", reduce_dtype="bfloat16").train(ROWS, LENGTH)
    assert found(other) == (False, {"bf16": weights, "f32": sums})


def test_optimizer_state_in_slices():
    """A fourth of both slots, rounded up for each weight, and as much for the weight's slice; the
    weights, gathered in one go, and all gradients are whole."""
    made = make(shard_optimizer=True)
    text = text_of(made.train(ROWS, LENGTH))
    signature = re.search(r"func.func (?:public )?@main\((.*)\) -> ", text)[1]
    shapes = re.findall(r"tensor<([\dx]*)f32>", signature)
    numbers = sum(math.prod(int(size) for size in shape.split("x") if size) for shape in shapes)
    weights = [math.prod(variable.shape) for variable in made.model.trainable_variables]
    assert numbers == sum(weights) + 3 * sum(math.ceil(weight / REPLICAS) for weight in weights)
    assert text.count("stablehlo.all_reduce") == len(weights) + len(Translation.SUMS) + 1
    assert text.count(f"stablehlo.custom_call @{ALL_GATHER}(") == 1


def test_micro_batches_make_a_loop():
    program = make(micro_batches=2).train(ROWS, LENGTH)
    assert program.trips == 2
    assert program.problems() == []
    assert text_of(program).count("stablehlo.while") == 1


def test_evaluation_and_decoding_have_static_shapes(made):
    for program in (made.evaluate(ROWS, LENGTH), made.decode(ROWS, LENGTH)):
        assert program.problems() == []
        assert program.stablehlo()
    assert program.trips == 2 * LENGTH + 16  # --config.decode.max_length_ratio and _offset


class WithDynamicShape(Translation):
    """Counts the tokens of a batch by gathering them, which has a size that depends on them."""

    def sums(self, model, batch, rng, *, training):
        sums = super().sums(model, batch, rng, training=training)
        kept = tf.boolean_mask(batch["target"], batch["target_segments"] > 0)  # planted here
        sums["positions"] = tf.cast(tf.size(kept), tf.float32)
        return sums


class WithHostCall(Translation):
    def sums(self, model, batch, rng, *, training):
        sums = super().sums(model, batch, rng, training=training)
        tf.py_function(print, [sums["loss"]], [])  # planted here
        return sums


class WithText(Translation):
    def sums(self, model, batch, rng, *, training):
        sums = super().sums(model, batch, rng, training=training)
        tf.strings.as_string(sums["loss"])  # planted here
        return sums


class WithoutKernel(Translation):
    """Uses an operation that XLA does not have."""

    def sums(self, model, batch, rng, *, training):
        sums = super().sums(model, batch, rng, training=training)
        sums["loss"] += tf.raw_ops.RandomGamma(shape=[1], alpha=sums["loss"])[0]  # planted here
        return sums


def planted_line() -> dict[str, int]:
    """Line numbers of the planted lines of this file, by class."""
    lines, name = {}, ""
    with open(__file__, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if found := re.match(r"class (\w+)", line):
                name = found[1]
            if line.rstrip().endswith("# planted here"):
                lines[name] = number
    return lines


@pytest.mark.parametrize(
    ("task", "what"),
    [
        (WithDynamicShape, "dynamic shape"),
        (WithHostCall, "call to the host"),
        (WithText, "text"),
    ],
)
def test_what_a_tpu_forbids_is_caught_with_its_line(task, what):
    found = [str(one) for one in make(task).train(ROWS, LENGTH).problems()]
    assert found
    assert what in found[0]
    line = planted_line()[task.__name__]
    assert f"test_preflight_programs.py:{line} in sums: " in found[0]
    assert found[0].endswith("# planted here")


def test_what_is_forbidden_is_caught_inside_of_micro_batches_too():
    found = make(WithDynamicShape, micro_batches=2).train(ROWS, LENGTH).problems()
    line = planted_line()["WithDynamicShape"]
    assert f"test_preflight_programs.py:{line} in sums: " in str(found[0])


def test_an_operation_that_cannot_be_exported_is_named_with_its_line():
    program = make(WithoutKernel).train(ROWS, LENGTH)
    with pytest.raises(programs.ExportError) as error:
        program.stablehlo()
    assert "RandomGamma" in error.value.problem.what
    line = planted_line()["WithoutKernel"]
    assert f"test_preflight_programs.py:{line} in sums" in error.value.problem.line


def test_lines_of_operations_by_their_compiled_names(train_program):
    """Names as the compiler has them: with calls, and of the backward pass."""
    program = train_program
    names = [name for one in program._operations for name in one]
    logits = program.line("StatefulPartitionedCall/MatMul")
    assert "trainer/model/embeddings.py" in logits and "tf.linalg.matmul" in logits
    dense = next(name for name in names if re.fullmatch(r".*/inner_1/Tensordot/MatMul", name))
    assert f"gradient_tape/{dense}/MatMul_1" in names
    found = program.line(f"StatefulPartitionedCall/gradient_tape/{dense}/MatMul_1")
    assert found == f"{program.line(dense)} (backward)" and "trainer/model/layers.py" in found
    assert "trainer/optim/adam.py" in program.line("ResourceApplyAdam")
    assert program.line("nobody/knows") == ""
