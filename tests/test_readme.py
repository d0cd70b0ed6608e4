"""The README's example runs as printed, and its commands exist."""

import re
from pathlib import Path

import pytest

from curvjax import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.demo_model
def test_python_example_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out
    assert (names["gains"].lower <= names["gains"].upper).all()
    assert sum(names["ranks"].amounts.values()) == 4 * 8
    assert (tmp_path / "runs" / "lora" / "adapter_model.safetensors").is_file()


def test_every_command_is_in_the_table():
    named = set(re.findall(r"\| `curvjax (\w+)", README))
    assert named == set(cli.COMMANDS)
