"""How `make bench ARGS=--write` updates docs/benchmarks.md."""

from __future__ import annotations

from benchmarks.__main__ import MARK, RESULTS, SECTION, updated

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


def test_a_part_replaces_its_own_figures() -> None:
    assert updated(PAGE, {"core": "machine\n3\n"}) == PAGE.replace("\n1\n", "\n3\n")


def test_a_new_part_is_inserted_in_order() -> None:
    page = updated(PAGE, {"limits": "machine\n4\n"})
    sections = {match["part"]: match["figures"] for match in SECTION.finditer(page)}
    assert list(sections.items()) == [
        ("core", "machine\n1\n"),
        ("limits", "machine\n4\n"),
        ("service", "machine\n2\n"),
    ]


def test_the_current_page_is_parsed_completely() -> None:
    page = RESULTS.read_text()
    assert updated(page, {}) == page
