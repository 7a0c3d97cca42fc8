"""Prometheus's rules: valid, tried with promtool, about metrics that exist, and explained."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from bptt.observability.exposition import Family
from bptt.observability.families import (
    BUILD_FAMILY,
    FAILURE_FAMILY,
    METHOD_FAMILIES,
    MODEL_FAMILIES,
    SERVER_FAMILIES,
    STATE_FAMILY,
)
from tests.support.tools import program

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/bptt.rules.yml"
CASES = ROOT / "tests/deploy/rules_test.yml"
PAGE = (ROOT / "docs/monitoring.md").read_text()
FAMILIES: list[Family[Any]] = [
    *MODEL_FAMILIES, STATE_FAMILY, FAILURE_FAMILY, BUILD_FAMILY, *SERVER_FAMILIES, *METHOD_FAMILIES,
]  # fmt: skip


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]
RECORDS = {rule["record"] for rule in rules() if "record" in rule}


def exported() -> set[str]:
    """Names of series at the default detail: histograms of models have no buckets there."""
    names = set()
    for family in FAMILIES:
        if family.kind != "histogram":
            names.add(family.name)
            continue
        names |= {f"{family.name}_sum", f"{family.name}_count"}
        if family in METHOD_FAMILIES:
            names.add(f"{family.name}_bucket")
    return names


def used(expression: str) -> set[str]:
    """Names of the series in an expression."""
    found = re.findall(r"[a-z]+:[a-z0-9_:]+|\b(?:bptt|grpc)_[a-z0-9_]+", expression)
    return set(found) - {"grpc_code", "grpc_method", "grpc_type"}


@pytest.mark.tools
@pytest.mark.parametrize("words", [("check", "rules", RULES), ("test", "rules", CASES)], ids=str)
def test_promtool_accepts_rules_and_cases(words: tuple[str, str, Path]) -> None:
    done = subprocess.run(
        [program("promtool"), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_uses_series_that_exist(rule: dict[str, Any]) -> None:
    assert used(rule["expr"]) <= exported() | RECORDS


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_fires_in_a_case_and_has_a_paragraph(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    cases = yaml.safe_load(CASES.read_text())["tests"]
    firing = {
        re.search(r'alertname="(\w+)"', sample["labels"])[1]  # type: ignore[index]
        for case in cases
        for expected in case["promql_expr_test"]
        for sample in expected["exp_samples"]
        if "alertname" in sample["labels"]
    }
    assert name in firing
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"]["runbook"] == f"docs/monitoring.md#{name.lower()}"
    paragraph = re.search(rf"^### {name}\n\n(.+?)\n(?:\n|$)", PAGE, re.MULTILINE | re.DOTALL)
    assert paragraph is not None
    assert len(paragraph[1]) > 100


def test_the_page_explains_nothing_that_is_gone() -> None:
    headings = re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)
    assert headings == sorted(headings, key=[each["alert"] for each in ALERTS].index)
    assert len(headings) == len(ALERTS)
    assert set(re.findall(r"`((?:model|method):[\w:]+)`", PAGE)) <= RECORDS
