"""Forms of times as JSON, so that a stream can remember how its source writes them."""

from __future__ import annotations

from datetime import tzinfo
from typing import Any

from bptt.cli.data.othertimes import Given, Number, OfDay
from bptt.cli.data.timeformat import TimeFormat, Written, written_formats, zone_of


def spec_of(form: TimeFormat, zone: tzinfo | None) -> list[Any]:
    """A form of times, and the zone of times that name none, as JSON can hold them."""
    name = "" if zone is None else str(zone)
    if isinstance(form, Written):
        return ["written", name, form.order, form.example]
    if isinstance(form, OfDay):
        return ["of day", name, form.example, form.hour_digits, form.wraps]
    if isinstance(form, Number):
        return ["number", name, form.unit, form.label, form.is_moment, form.since, form.decimals]
    assert isinstance(form, Given)
    return ["given", name, form.label]


def format_of(spec: list[Any]) -> tuple[TimeFormat, tzinfo | None]:
    """The form and the zone that `spec_of` described.

    Raises:
        ValueError: it is no such form.
        InputError: the zone is not known here.
    """
    kind, name, *rest = spec
    zone = zone_of(name.removeprefix("UTC") or "UTC") if name else None
    if kind == "written":
        order, example = rest
        forms = [form for form in written_formats([example], 1.0) if form.order == order]
        if not forms:
            raise ValueError(f"{example!r} is no time")
        forms[0].seconds(example)  # takes its zone
        return forms[0], zone
    if kind == "of day":
        example, digits, wraps = rest
        return OfDay(wraps=wraps, example=example, hour_digits=digits), zone
    if kind == "number":
        unit, label, is_moment, since, decimals = rest
        return Number(unit, label, is_moment, since, decimals=decimals), zone
    (label,) = rest
    return Given(label), zone
