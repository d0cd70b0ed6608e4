"""The README's example runs as printed, and its commands exist."""

import re
from pathlib import Path

import pytest

from curvjax import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")

EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.demo_model
def test_python_example_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _ = EXAMPLES
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out
    assert (names["gains"].lower <= names["gains"].upper).all()
    assert sum(names["ranks"].amounts.values()) == 4 * 8
    assert (tmp_path / "runs" / "lora" / "adapter_model.safetensors").is_file()


def test_the_example_of_ones_own_module_runs():
    names = {}
    exec(compile(EXAMPLES[1], "README.md", "exec"), names)
    assert (names["gains"].lower <= names["gains"].upper).all()
    assert names["kept"] == pytest.approx(1.0, abs=0.1)
    assert names["gradients"].keys() == {path for path in names["mine"].parameters if path.startswith("layers.")}


def test_every_command_is_in_the_table():
    named = set(re.findall(r"\| `curvjax (\w+)", README))
    assert named == set(cli.COMMANDS)
