"""The scripts of `notebooks/` as executed .ipynb beside them: `make notebooks`; given names, only those.

Cells are the script's own, and tests compare them. Pictures are drawn as wide as they are shown, in few colours, which
keeps a file small.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
MARK = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
WIDTH, COLOURS = 760, 64


def sources(path: Path) -> list[tuple[str, str]]:
    """`(markdown or code, source)` of every cell of a `py:percent` script."""
    _, *rest = MARK.split(path.read_text(encoding="utf-8"))
    cells = [(bool(mark), text.strip("\n")) for mark, text in zip(rest[::2], rest[1::2], strict=True)]
    return [("markdown", re.sub(r"^# ?", "", text, flags=re.M)) if prose else ("code", text) for prose, text in cells]


def page(path: Path, repository: str | None) -> str:
    """A script as Markdown, code in fences; with the address of a repository on GitHub, a link to run it in Colab."""
    (_, title), *cells = sources(path)
    links = f"The script: [{path.name}]({path.name}); as it ran: [{path.stem}.ipynb]({path.stem}.ipynb)"
    owner = (repository or "").removeprefix("https://github.com/").strip("/")
    if repository and owner != repository.strip("/"):
        colab = f"https://colab.research.google.com/github/{owner}/blob/main/notebooks/{path.stem}.ipynb"
        links += f"; [in Colab]({colab}), after `%pip install git+https://github.com/{owner}`"
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells]
    return "\n\n".join([title, links, *parts])


def executed(path: Path) -> Any:
    """The notebook of a script, run from an empty folder; an error in a cell is raised."""
    import nbformat
    from nbclient import NotebookClient

    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [make[kind](source, id=f"cell-{number}") for number, (kind, source) in enumerate(sources(path))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FIGURES": folder, "MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu"}
        NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}  # when each ran
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _small(output.data["image/png"])
    notebook.metadata = {"kernelspec": kernel}
    return notebook


def _small(png: str) -> str:
    from PIL import Image

    picture, file = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.thumbnail((WIDTH, picture.height), Image.Resampling.LANCZOS)
    picture.quantize(COLOURS).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main(names: list[str]) -> None:
    """Write those named, or all."""
    import nbformat

    for path in sorted(FOLDER.glob("*.py")):
        if not names or path.stem in names:
            nbformat.write(executed(path), path.with_suffix(".ipynb"))
            print(path.with_suffix(".ipynb").relative_to(ROOT), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
