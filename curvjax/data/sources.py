"""One name for every place that documents come from."""

from pathlib import Path

from curvjax.data.demonstration import TEXTS, demonstration_texts
from curvjax.data.documents import Document
from curvjax.data.files import read_path
from curvjax.data.tasks import TASKS, question_document, read_task

SOURCES = (*(f"demo:{name}" for name in sorted(TEXTS)), *(f"task:{name}" for name in sorted(TASKS)))


def read_documents(source: str) -> list[Document]:
    """Documents of a path, of a demonstration text `demo:NAME`, or of a task `task:NAME`.

    Args:
      source: a `.txt`, `.jsonl` or `.jsonl.gz` file, or a directory of such (`read_path`); `demo:squad`, `demo:boolq`,
        `demo:coqa` (`demonstration_texts`); `task:sciq` and so on, questions as prompts and right answers as texts
        (`read_task`, `question_document`).

    Raises:
      ValueError: if the source is empty, or a `demo:` or `task:` name unknown.
    """
    if not source:
        msg = "the name of a text is empty; give a file, a directory, demo:NAME or task:NAME."
        raise ValueError(msg)
    scheme, colon, name = source.partition(":")
    if scheme not in {"demo", "task"} or not colon:
        return read_path(Path(source))
    if source not in SOURCES:
        msg = f"unknown source {source!r}; there are {', '.join(SOURCES)}, and paths of files and directories."
        raise ValueError(msg)
    return demonstration_texts(name) if scheme == "demo" else [question_document(q) for q in read_task(name)]
