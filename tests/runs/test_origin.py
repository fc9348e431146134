from pathlib import Path

import pytest

from budgetnet.errors import UsageError
from budgetnet.runs.origin import changed_code, check_facts, write_origin

FACTS = {"training images": 1200, "classes": ["ant", "bee", "cat"]}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (FACTS | {"training images": 1300}, r"\(now 1,300 training images instead of 1,200\)"),
        (FACTS | {"classes": ["ant", "zebra", "cat"]}, r"3 \(with 'zebra'\) classes instead of 3 \(with 'bee'\)"),
        (FACTS | {"classes": ["ant", "cat"]}, r"2 classes instead of 3 \(with 'bee'\)"),
        (FACTS | {"classes": 3}, r"3 classes instead of 3 \(with 'ant'\)"),
        (FACTS, None),
        (FACTS | {"a fact of a later version": 4}, None),
        ({}, None),
    ],
)
def test_a_run_is_not_continued_with_other_facts(facts: dict[str, object], said: str | None, tmp_path: Path) -> None:
    write_origin(tmp_path, FACTS, [])
    if said is None:
        check_facts(tmp_path, facts)
    else:
        with pytest.raises(UsageError, match=said):
            check_facts(tmp_path, facts)


def test_files_that_have_changed_are_named_and_those_that_are_gone_are_not(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.py", "b.py", "c.py")]
    for file in files:
        file.write_text("x = 1")
    write_origin(tmp_path, FACTS, files)
    assert changed_code(tmp_path) is None
    files[0].unlink()
    assert changed_code(tmp_path) is None
    files[1].write_text("x = 2")
    assert changed_code(tmp_path) == f"{files[1]} changed since {tmp_path} began"
    files[2].write_text("x = 2")
    assert changed_code(tmp_path) == f"{files[1]} and 1 more changed since {tmp_path} began"


def test_a_record_of_somebody_else_is_read_in_no_time(tmp_path: Path) -> None:
    (tmp_path / "origin.json").write_text('{"sources": {"/dev/zero": "0", "/": "0"}}')
    assert changed_code(tmp_path) is None


@pytest.mark.parametrize("text", [None, "", "[]", '{"facts": 3}', "{", '{"sources": {"a\\u0000b": "x"}, "facts": {}}'])
def test_a_run_without_a_record_or_with_a_damaged_one_is_not_checked(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "origin.json").write_text(text)
    check_facts(tmp_path, FACTS)
    assert changed_code(tmp_path) is None
