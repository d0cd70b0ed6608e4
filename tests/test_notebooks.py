"""Every notebook is a script in cells, and beside it lies what these gave as they ran, an .ipynb.

That it runs as it is now takes half a minute each: `tests/oracles/test_notebooks.py`.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
CELL = re.compile(r"^# %%( \[markdown\])?$", re.MULTILINE)


def cells(path):
    """`(is_prose, text)` of every cell; what precedes the first marker comes first, as code."""
    first, *rest = CELL.split(path.read_text(encoding="utf-8"))
    return [(False, first), *((bool(mark), text) for mark, text in zip(rest[::2], rest[1::2], strict=True))]


def test_there_is_a_notebook():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_every_line_is_in_a_cell_of_prose_or_code(path):
    (_, before), *found = cells(path)
    assert not before.strip()
    assert found[0][0], "a notebook begins with its title"
    assert len(re.findall(r"^# ?%%", path.read_text(encoding="utf-8"), re.MULTILINE)) == len(found)
    for is_prose, text in found:
        assert text.strip(), "an empty cell"
        if is_prose:
            assert all(line.startswith("# ") or line == "#" for line in text.strip().splitlines())
        else:
            compile(text, path.name, "exec")  # a cell can be run by itself


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_executed_notebook_is_the_scripts_and_ran_from_its_first_cell_to_its_last(path):
    executed = path.with_suffix(".ipynb")
    found = json.loads(executed.read_text(encoding="utf-8"))
    wanted = [
        (True, re.sub(r"^# ?", "", text.strip("\n"), flags=re.MULTILINE)) if prose else (False, text.strip("\n"))
        for prose, text in cells(path)[1:]
    ]
    stale = f"{executed.name} is not of {path.name} as it is: make notebooks"
    assert [(cell["cell_type"] == "markdown", "".join(cell["source"])) for cell in found["cells"]] == wanted, stale
    ran = [cell for cell in found["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(ran) + 1))
    outputs = [output for cell in ran for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} <= {"stdout"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert executed.stat().st_size < 400_000


def test_the_page_of_a_notebook_links_to_colab_where_the_repository_has_an_address():
    spec = importlib.util.spec_from_file_location("notebook_pages", ROOT / "docs" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = NOTEBOOKS[0]
    plain = module.page(path, None)
    assert plain.startswith("# ")
    assert "```python\nimport os" in plain
    assert "colab" not in plain + module.page(path, "https://example.org/a/b")
    linked = module.page(path, "https://github.com/someone/curvjax/")
    assert f"https://colab.research.google.com/github/someone/curvjax/blob/main/notebooks/{path.stem}.ipynb" in linked
    assert "`%pip install git+https://github.com/someone/curvjax`" in linked
