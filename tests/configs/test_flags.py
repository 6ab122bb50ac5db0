"""Command lines with --config, and the one-line error for each thing that can be wrong."""

import pytest
from absl import flags as absl_flags

from common.errors import UsageError
from configs import flags


def read(*arguments, default=flags.DEMO_FILE):
    values = absl_flags.FlagValues()
    assert flags.parse(["program", *arguments], default, values) == ["program"]
    return flags.read(values)


def test_the_default_and_single_fields():
    name, config = read("--config.train.steps=5", "--config.data.buckets=8,16")
    assert (name, config.train.steps, config.data.buckets) == ("demo", 5, (8, 16))
    assert (config.model.width, config.train.batch_tokens) == (128, 3072)


def test_a_file_and_the_small_model():
    file = flags.DEMO_FILE.replace("demo.py", "transformer_base.py")
    name, config = read(f"--config={file}", *flags.SMALL_MODEL)
    assert (name, config.model.width, config.model.decoder_layers) == ("transformer_base", 32, 1)
    assert config.train.steps == 100_000


_DEMO = "from configs import demo\ndef get_config():\n    made = demo.get_config()"


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (
            "",
            ["--config.train.stepz=5"],
            r"--config.train.stepz: no such field \(there is train.steps\); "
            "configs/schema.py lists the fields",
        ),
        ("", ["--config.nothing.x=1"], "--config.nothing.x: no such field; "),
        (
            "",
            ["--config.train=5"],
            "--config.train is a group of fields; .*--config.train.[a-z_]+=",
        ),
        ("", ["--config.model.norm=both"], "--config.model.norm is 'both', but must be one of"),
        ("", ["--config=absent.py"], "--config=absent.py: no such file"),
        ("", ["--config", "absent.py", "--config.train.seed=2"], "absent.py: no such file"),
        ("def get_config(): return 3", [], "returns no configs.schema.Config"),
        ("def get_config(: pass", [], "mine.py: SyntaxError: "),
        ("\nimport absent", [], "mine.py, line 2: ModuleNotFoundError: No module named 'absent'"),
        ("x = 1", [], "mine.py: KeyError: 'get_config'"),
        ("def get_config():\n    raise KeyError(3)", [], "mine.py, line 2: KeyError: 3"),
        (
            f"{_DEMO}\n    made.train.stepz = 5\n    return made",
            [],
            "mine.py, line 4: AttributeError: 'TrainConfig' object has no attribute 'stepz'",
        ),
        (
            f"{_DEMO}\n    made.train = made.data\n    return made",
            [],
            r"--config.train is DataConfig\(.*, but must be a TrainConfig",
        ),
        ("", ["--config.train.steps.x=5"], "steps.x: train.steps is a field and has none of its"),
        ("", ["--config.data.buckets.0=5"], "buckets.0: data.buckets is a field and has none"),
    ],
)
def test_what_can_be_wrong(text, arguments, message, tmp_path):
    if text:
        (tmp_path / "mine.py").write_text(text)
        arguments = [f"--config={tmp_path}/mine.py"]
    with pytest.raises(UsageError, match=message):
        read(*arguments)
    with pytest.raises(UsageError, match="give --config=FILE"):
        read(default=None)


def test_a_value_of_the_wrong_type():
    with pytest.raises(absl_flags.Error, match="many"):
        read("--config.train.steps=many")
