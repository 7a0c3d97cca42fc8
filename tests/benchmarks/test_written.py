"""What `make bench` writes down."""

from __future__ import annotations

from benchmarks.__main__ import MARK, RESULTS, SECTION, written

PAGE = f"""# Benchmarks

By hand.

{MARK}

### core

```text
machine
1
```

### service

```text
machine
2
```
"""


def test_a_part_is_written_in_its_place() -> None:
    assert written(PAGE, {"core": "machine\n3\n"}) == PAGE.replace("\n1\n", "\n3\n")


def test_a_new_part_stands_where_its_order_says() -> None:
    page = written(PAGE, {"limits": "machine\n4\n"})
    sections = {match["part"]: match["figures"] for match in SECTION.finditer(page)}
    assert list(sections.items()) == [
        ("core", "machine\n1\n"),
        ("limits", "machine\n4\n"),
        ("service", "machine\n2\n"),
    ]


def test_the_page_as_it_stands_is_read_whole() -> None:
    page = RESULTS.read_text()
    assert written(page, {}) == page
