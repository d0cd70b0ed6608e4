import gzip
import json

import pytest

from curvjax.data import Document, read_documents, read_path


def lines(*records):
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def test_text_file_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffNaïve.\r\n\r\nTwo.".encode())
    assert read_path(path) == [Document("a.txt", "Naïve.\r\n\r\nTwo.")]


def test_marks_and_line_ends_of_other_systems_are_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes("\ufeff".encode() + b'{"text": "a"}\r\n\r\n{"text": "\\ud83d\\ude42 b\\u0000"}\r\n')
    assert [document.text for document in read_path(path)] == ["a", "\N{SLIGHTLY SMILING FACE} b\0"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_json_lines_keep_line_numbers_and_skip_blanks(tmp_path, suffix):
    content = lines({"text": "one", "extra": 1}, {"text": "  "}) + "\n\n" + lines({"text": "line\u2028two"}) + "\n"
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(content.encode()) if suffix.endswith("gz") else content.encode())
    assert read_path(path) == [Document(f"a{suffix}:1", "one"), Document(f"a{suffix}:4", "line\u2028two")]


def test_completions_keep_their_prompt(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(lines({"prompt": "Q:", "completion": " A"}, {"prompt": "", "completion": "B"}))
    assert read_path(path) == [Document("a.jsonl:1", " A", prompt="Q:"), Document("a.jsonl:2", "B")]


def test_directory_is_read_below_in_sorted_order(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/.hidden.txt", ".git/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "README.md").write_text("not data")
    assert [document.id for document in read_documents(str(tmp_path))] == ["a/z.txt", "b.txt"]


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.txt", b"", r"a\.txt: the file is empty"),
        ("a.txt", b" \n", r"no usable documents in 1 file"),
        ("a.jsonl", b"\n\n", r"no usable documents"),
        ("a.jsonl", b'{"text": ""}', r"no usable documents"),
        ("a.txt", b"abc\xff\xfe", r"a\.txt: not UTF-8 at byte 3"),
        ("a.jsonl.gz", b"plain", r"not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], r"not a whole gzip file"),
        ("a.csv", b"a,b", r"unknown kind of file; allowed are \.txt, \.jsonl, \.jsonl\.gz"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "a"}', r"a\.jsonl:1: need either 'text', .* found \['body'\]"),
        ("a.jsonl", b'{"prompt": "a"}', r"found \['prompt'\]"),
        ("a.jsonl", b'{"text": "a", "prompt": "b", "completion": "c"}', r"need either"),
        ("a.jsonl", b'["text"]', r"found list"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a", "prompt": "b"}', r"a\.jsonl:2: .* both; found \['prompt', 'text'\]"),
        ("a.jsonl", b'{"text": "a", "completion": "b"}', r"a\.jsonl:1: .* Rename the one to predict to 'completion'"),
        ("a.jsonl", b'{"text": null}', r"a\.jsonl:1: every value must be a string; found \{'text': 'NoneType'\}"),
        ("a.jsonl", b'{"prompt": "a", "completion": ["b"]}', r"a\.jsonl:1: .* found \{'completion': 'list'\}"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": "b \\ud83d c"}',
            r"a\.jsonl:2: 'text': \\ud83d at character 2 is half of a",
        ),
        ("a.jsonl", b'{"prompt": "\\udc00", "completion": "c"}', r"a\.jsonl:1: 'prompt': \\udc00 at character 0 is"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", r"a\.jsonl:1: not JSON: Exceeds the limit"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, r"a\.jsonl:1: not JSON: "),
        ("a.jsonl", b'{"text": "a"}\r{"text": "b"}', r"a\.jsonl:1: not JSON: Extra data"),
        ("a.txt", "UTF-16, no mark".encode("utf-16-le"), r"a\.txt: byte 1 is NUL: UTF-16, or no text at all"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), r"a\.jsonl: byte 3 is NUL: UTF-16"),
        ("a.txt", b"PK\x03\x04\x00", r"a\.txt: byte 4 is NUL"),
        ("a.jsonl", b'{"text": 3}', r"every value must be a string; found \{'text': 'int'\}"),
        ("a.jsonl", b'{"text": "a"}\n{"prompt": "a", "completion": "b"}', r"a\.jsonl:2: mixed kinds"),
    ],
)
def test_bad_files_say_what_is_wrong_and_where(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_path(tmp_path / name)


def test_missing_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt: no such file or directory"):
        read_path(tmp_path / "nowhere.txt")


def test_directory_without_data_says_what_it_found(tmp_path):
    (tmp_path / "a.md").write_text("a")
    with pytest.raises(ValueError, match=r"no \.txt, .* found \['\.md'\]"):
        read_path(tmp_path)


def test_directory_of_mixed_kinds_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"text": "a"}')
    with pytest.raises(ValueError, match=r"mixed kinds of documents, .*'text': 1, 'JSON lines': 1"):
        read_path(tmp_path)


def test_a_text_without_a_name_is_not_the_directory_one_is_in():
    with pytest.raises(ValueError, match="the name of a text is empty; give a file"):
        read_documents("")
