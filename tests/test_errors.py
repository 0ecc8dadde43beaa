"""Messages to the user: printable, short, without passwords, whatever text they quote."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimes.errors import MAX_LINE, MAX_LINES, UserError, one_line
from regimes.hpo.optuna_study import open_storage

text = st.text(max_size=50) | st.text("ab:/@?=\n\x1b\u202e", max_size=400)


@given(text)
def test_a_line_is_printable_and_short(given: str) -> None:
    line = one_line(given)
    assert line.isprintable()
    assert len(line) <= MAX_LINE
    assert len(one_line(given, 60)) <= 60
    if given.isprintable() and len(given) <= MAX_LINE and not {"@", "="} & set(given):
        assert line == given


def test_both_ends_of_a_long_text_are_shown() -> None:
    assert one_line("key: " + "x" * 10**7 + "; allowed: a", 300) == f"key: {'x' * 140} ... {'x' * 138}; allowed: a"
    assert one_line("short") == "short"
    assert one_line("a\tb\x1b[31m\u202e\0") == r"a\tb\x1b[31m\u202e\x00"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:hunter2@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:hunter2@/:@host/db", "postgresql://me:***@host/db"),
        ("me:hun\nter2@host", "me:***@host"),
        ("redis://:hunter2@host", "redis://:***@host"),
        ("postgresql:/me:hunter2@host/db", "postgresql:/me:***@host/db"),
        ("postgresql://host/db?user=me&password=hunter2&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql://USER@HOST/NAME", "postgresql://USER@HOST/NAME"),
        ("sqlite:///study.db", "sqlite:///study.db"),
    ],
)
def test_passwords_of_urls_are_hidden(url: str, shown: str) -> None:
    assert str(UserError(f"--storage {url}: refused")) == f"--storage {shown}: refused"


@pytest.mark.parametrize("url", ["postgresql:/me:hunter2@h/x", "unknown://me:hun ter2@h/x", "://me:hunter2@h\x1b[31m"])
def test_a_storage_that_cannot_be_opened_keeps_its_password(url: str) -> None:
    with pytest.raises(UserError, match="--storage") as error:
        open_storage(url)
    assert "ter2" not in str(error.value)
    assert str(error.value).isprintable()


def test_many_lines_are_counted() -> None:
    error = UserError(*(f"line {number}" for number in range(100)))
    assert error.lines == (*(f"line {number}" for number in range(MAX_LINES)), f"... and {100 - MAX_LINES} more")
    assert UserError(*error.lines).lines == error.lines
    assert str(error).splitlines() == list(error.lines)
    assert pickle.loads(pickle.dumps(error)).lines == error.lines
