"""The generator of the BUILD files, on small repositories made for it."""

from pathlib import Path

import offline
import pytest
from build_files import Repository, build_files
from test_build_files import TEXTS, rules_of


def make(directory: Path, files: dict[str, str]) -> dict[str, dict]:
    """The rules for such files."""
    locks = {"cpu": "absl-py==2.5.1\nPyYAML==6 ; x == 'y'\n", "preflight": "jax==1\n"}
    for path, text in {**{f"requirements/{k}.txt": v for k, v in locks.items()}, **files}.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(text)
    return rules_of(build_files(Repository(directory, files)))


def test_imports_become_deps(tmp_path):
    """Anywhere in the file. jax comes from the second lock, since the first has none."""
    rules = make(
        tmp_path,
        {
            "trainer/__init__.py": "",
            "trainer/a.py": "from trainer import b\ndef f():\n    import trainer.c, os, torch\n",
            "trainer/b.py": "if TYPE_CHECKING:\n    import jax.x\n",
            "trainer/c.py": "from absl import flags\nimport yaml\n",
        },
    )
    assert rules["//trainer:a"]["deps"] == [f"//trainer:{name}" for name in ("b", "c", "trainer")]
    assert rules["//trainer:b"]["deps"] == ["//trainer:trainer", "@pip_preflight//jax:jax"]
    others = ["@pip//absl_py:absl_py", "@pip//pyyaml:pyyaml"]
    assert rules["//trainer:c"]["deps"] == ["//trainer:trainer", *others]
    assert {rule["rule"] for rule in rules.values()} == {"py_library"}


def test_files_that_import_each_other_are_one_target(tmp_path):
    files = {"trainer/a.py": "import trainer.b", "trainer/b.py": "import trainer.a, trainer.c"}
    rules = make(tmp_path, {**files, "trainer/c.py": ""})
    assert rules["//trainer:a"]["srcs"] == ["trainer/a.py", "trainer/b.py"]
    assert rules["//trainer:a"]["deps"] == ["//trainer:c"] and "//trainer:b" not in rules


def test_files_of_two_folders_that_import_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"several folders .*'launch/a.py', 'trainer/b.py'"):
        make(tmp_path, {"launch/a.py": "import trainer.b", "trainer/b.py": "import launch.a"})


def test_what_strings_name_is_data(tmp_path):
    """Modules to start, files to open; not in docstrings, and not what makes a cycle."""
    rules = make(
        tmp_path,
        {
            "launch/local.py": "X = '-m', 'trainer.main'\nif __name__ == '__main__':\n    f()\n",
            "launch/job.py": '"""trainer.main"""\nX = "templates/"\n',
            "launch/templates/job.yaml": "",
            "trainer/main.py": "import launch.job\nC = 'import trainer.x; import launch.local'\n",
            "trainer/x.py": "",
        },
    )
    local = rules["//launch:local"]
    assert (local["rule"], local["main_module"]) == ("py_binary", "launch.local")
    assert rules["//launch:job"]["data"] == ["//launch:templates/job.yaml"]
    assert local["data"] == ["//trainer:main"]
    assert rules["//trainer:main"]["data"] == ["//trainer:x"]


def test_a_test_depends_on_pytest_and_conftest(tmp_path):
    """One whose tests pyproject.toml leaves out is run only when it is named."""
    marked = "import helper\n@pytest.mark.preflight\ndef test_a():\n    pass\n"
    rules = make(
        tmp_path,
        {
            "pyproject.toml": "",
            "tests/conftest.py": "",
            "tests/test_b.py": "def test_b():\n    pass\n",
            "tests/trainer/conftest.py": "",
            "tests/trainer/helper.py": "",
            "tests/trainer/test_a.py": marked,
        },
    )
    assert rules["//tests:conftest"]["data"] == ["//:pyproject.toml"]
    a, b = rules["//tests/trainer:test_a"], rules["//tests:test_b"]
    assert a["deps"] == [
        *("//tests/trainer:conftest", "//tests/trainer:helper"),
        *("//tests:conftest", "@pip//pytest:pytest"),
    ]
    assert b["deps"] == ["//tests:conftest", "@pip//pytest:pytest"]
    assert (a["rule"], a["main_module"], a["tags"]) == ("py_test", "pytest", ["manual"])
    assert a["args"] == ["tests/trainer/test_a.py", "-m", "preflight"]
    assert b["args"] == ["tests/test_b.py"] and "tags" not in b


def test_an_import_that_is_not_locked_is_refused(tmp_path):
    with pytest.raises(LookupError, match=r"trainer/a\.py imports pandas\.x, which is not in"):
        make(tmp_path, {"trainer/a.py": "from pandas import x\n"})


def test_the_workspace_without_a_registry_has_every_repository(tmp_path):
    """Bazel itself has to be run by hand: see tests/bazel/offline.py."""
    workspace = offline.make_workspace(tmp_path)
    text = (workspace / "WORKSPACE").read_text()
    for label in {dep for rule in rules_of(TEXTS).values() for dep in rule["deps"]}:
        if label.startswith("@"):
            hub, _, package = label[1:].rpartition(":")[0].partition("//")
            assert (tmp_path / hub / package / "BUILD").is_file(), label
            assert f'name = "{hub}", path = "{tmp_path / hub}"' in text
    assert (workspace / "trainer/BUILD").read_text() == TEXTS["trainer/BUILD"]
