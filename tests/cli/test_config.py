"""Every setting by flag, variable and file: `bptt config`, and `bptt serve` where it refuses."""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints, Literal

import pytest
from click.testing import CliRunner

from bptt.cli.config import config as command
from bptt.cli.main import bptt as group
from bptt.cli.settings import OTHER_VARIABLES
from bptt.config import config_fields, ConfigField, ServerConfig
from tests.cli.conftest import run

ROOT = Path(__file__).parents[2]
FIELDS = config_fields()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty working folder."""
    monkeypatch.chdir(tmp_path)


def shown(*arguments: str, **variables: str) -> dict[str, Any]:
    """The settings that `bptt config --json` shows."""
    done = CliRunner().invoke(command, [*arguments, "--json"], env=variables)
    assert done.exit_code == 0, done.output
    settings: dict[str, Any] = json.loads(done.output)["settings"]
    return settings


def refused(*arguments: str, name: str = "config", **variables: str) -> str:
    """The one line with which a command refuses its settings."""
    done = CliRunner().invoke(group, [name, *arguments], env=variables)
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def others(field: ConfigField) -> list[Any]:
    """Three valid values of a field, none of which is its default."""
    found: list[Any]
    if get_origin(field.type) is Literal:
        found = [each for each in get_args(field.type) if each != field.default]
        found *= 3
    elif field.name.endswith("address"):
        found = ["127.0.0.1:1", "127.0.0.1:2", "[::1]:3"]
    elif {Path, str} & {field.type, *get_args(field.type)}:
        found = ["a", "b", "c"]
    elif field.type is bool:
        found = [True, True, True]
    elif field.type is float:
        found = [0.25, 3.5, 1e-3]
    else:
        least = int(field.setting.least or 0)
        found = [value for value in range(least, least + 4) if value != field.default]
    return found[:3]


def toml(field: ConfigField, value: Any) -> str:
    table, _, name = field.key.rpartition(".")
    return (f"[{table}]\n" if table else "") + f"{name} = {json.dumps(value)}\n"


def leaves(kind: type[Any], above: str = "") -> set[str]:
    """The keys of a dataclass and of those in it, found without the code that is tested."""
    hints, found = get_type_hints(kind), set()
    for each in fields(kind):
        hint = hints[each.name]
        inner = is_dataclass(hint)
        found |= leaves(hint, f"{above}{each.name}.") if inner else {above + each.name}
    return found


def test_every_field_of_the_configuration_is_a_setting() -> None:
    assert {each.key for each in FIELDS} == leaves(ServerConfig)
    assert len({each.name for each in FIELDS}) == len(FIELDS), "no two keys share a flag"


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.key)
def test_flag_beats_variable_beats_file_beats_default(field: ConfigField) -> None:
    flag, variable, file = others(field)
    by_default = shown()[field.key]
    assert (by_default["value"], by_default["where"]) == (by_default["default"], "default")

    Path("bptt.toml").write_text("# settings\n" + toml(field, file))
    by_file = shown()[field.key]
    line = 2 if "." not in field.key else 3
    assert (by_file["value"], by_file["where"]) == (file, f"bptt.toml, line {line}")

    environment = {field.variable: str(variable)}
    by_variable = shown(**environment)[field.key]
    assert (by_variable["value"], by_variable["where"]) == (variable, field.variable)

    by_flag = shown(field.flag, str(flag), **environment)[field.key]
    assert (by_flag["value"], by_flag["where"]) == (flag, field.flag)
    assert [by_default["source"], by_file["source"], by_variable["source"], by_flag["source"]] == [
        "default",
        "file",
        "variable",
        "flag",
    ]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.key)
def test_serve_has_the_flag_and_its_help(field: ConfigField) -> None:
    serve = group.commands.get("serve") or group.get_command(None, "serve")  # type: ignore[arg-type]
    assert serve is not None
    (option,) = [each for each in serve.params if field.flag in each.opts]
    assert getattr(option, "help", None) == field.setting.help
    assert field.setting.help.endswith(".")


def outside(field: ConfigField) -> list[tuple[str, str]]:
    """Values just outside a field's bounds, and the bound as its error names it."""
    bounds, found = field.setting, []
    if bounds.positive:
        found = [(text, "a finite number > 0") for text in ("0.0", "-1.0", "nan", "inf")]
    if bounds.least is not None:
        found.append((str(int(bounds.least) - 1), str(bounds.least)))
    if bounds.most is not None:
        found.append((str(int(bounds.most) + 1), str(bounds.most)))
    return found


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [(each, value, bound) for each in FIELDS for value, bound in outside(each)],
    ids=lambda part: part.key if isinstance(part, ConfigField) else None,
)
def test_a_value_out_of_its_bounds_names_field_source_and_bound(
    field: ConfigField, value: str, bound: str
) -> None:
    Path("bptt.toml").write_text(toml(field, None).replace("null", value))
    for arguments, variables, place in (
        ([f"{field.flag}={value}"], {}, field.flag),
        ([], {field.variable: value}, field.variable),
        ([], {}, "bptt.toml, line"),
    ):
        told = refused(*arguments, **variables)
        assert f"{field.key} ({place}" in told
        assert re.search(rf"is {re.escape(value)}, but must be .*{re.escape(bound)}", told), told


@pytest.mark.parametrize(
    "field",
    [each for each in FIELDS if each.setting.bound or get_origin(each.type) is Literal],
    ids=lambda field: field.key,
)
def test_text_for_a_number_names_field_and_source(field: ConfigField) -> None:
    told = refused(**{field.variable: "soon"})
    assert f"{field.key} ({field.variable}): 'soon' is not" in told


@pytest.mark.parametrize("value", ["2.5", "true", '"two"', "[2]", "2024-01-01"])
def test_a_toml_value_of_another_type_names_the_line(value: str) -> None:
    Path("bptt.toml").write_text(f"durability = 'full'\nthreads = {value}\n")
    told = refused()
    assert "bptt.toml, line 2" in told
    assert "threads" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("threds = 2", "line 1: unknown key 'threds'; did you mean 'threads'?"),
        ("[kept]\ncheckpoint = 2", "line 2: unknown key 'kept.checkpoint'; did you mean 'kept.ch"),
        ("[wept]\nx = 2", "line 2: unknown key 'wept.x'; `bptt config` lists all"),
        ("kept = 2", "line 1: unknown key 'kept'"),
        ("threads = ", "is no TOML"),
        ("threads = 2\nthreads = 2", "is no TOML"),
    ],
)
def test_an_unknown_key_names_file_line_and_the_similar_one(text: str, told: str) -> None:
    Path("mine.toml").write_text(text)
    assert f"mine.toml{', ' if told.startswith('line') else ' '}{told}" in refused(
        "--config", "mine.toml"
    )


@pytest.mark.parametrize("name", ["config", "serve"])
def test_an_unknown_variable_is_refused_by_name(name: str) -> None:
    assert "unknown variable BPTT_THREDS; did you mean 'BPTT_THREADS'?" in refused(
        name=name, BPTT_THREDS="2"
    )


def test_variables_that_kubernetes_sets_for_a_service_called_bptt_are_no_settings() -> None:
    names = ("PORT", "SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT_50051_TCP")
    more = ("PORT_50051_TCP_ADDR", "PORT_50051_TCP_PORT", "PORT_50051_TCP_PROTO")
    assert shown(**{f"BPTT_{name}": "x" for name in names + more})["threads"]["where"] == "default"


def test_every_variable_of_this_tree_is_known() -> None:
    roots = ("service", "bptt_core", "tests", "deploy", "docs", "examples", "benchmarks", ".ci")
    files = [path for root in roots for path in (ROOT / root).rglob("*") if path.is_file()]
    texts = [
        path.read_bytes().decode(errors="ignore")
        for path in files
        if path.suffix not in (".gz", ".pyc")
    ]
    names = {name for text in texts for name in re.findall(r"\bBPTT_[A-Z_]+[A-Z]\b", text)}
    known = {each.variable for each in FIELDS} | set(OTHER_VARIABLES)
    invented = {"BPTT_THREDS", "BPTT_SERVICE_HOST", "BPTT_PORT"}  # by this file
    assert {"BPTT_FAILPOINT", "BPTT_REQUIRE_TOOLS"} <= names
    assert names - known - invented == set()


def test_a_file_is_named_by_flag_or_variable_and_must_exist() -> None:
    Path("one.toml").write_text("threads = 5\n")
    Path("bptt.toml").write_text("threads = 4\n")
    assert shown()["threads"]["value"] == 4
    assert shown("--config", "one.toml")["threads"]["where"] == "one.toml, line 1"
    assert shown(BPTT_CONFIG="one.toml")["threads"]["value"] == 5
    assert "two.toml cannot be read: No such file" in refused("--config", "two.toml")


@pytest.mark.parametrize(
    ("text", "value"), [("65536", 65536), ("64KiB", 65536), ("64 MiB", 64 << 20), ("1GiB", 1 << 30)]
)
def test_bytes_may_have_a_unit(text: str, value: int) -> None:
    assert shown("--kept-history-bytes", text)["kept.history_bytes"]["value"] == value


@pytest.mark.parametrize("text", ["64MB", "1.5GiB", "GiB", ""])
def test_bytes_with_another_unit_are_refused(text: str) -> None:
    assert "kept.history_bytes (--kept-history-bytes)" in refused("--kept-history-bytes", text)


def test_none_stands_for_no_value() -> None:
    nones = [each for each in FIELDS if NoneType in get_args(each.type)]
    assert {each.key for each in nones} == {
        "callers",
        "data",
        "jwt.audience",
        "jwt.issuer",
        "jwt.keys",
        "metrics_address",
        "tls.cert",
        "tls.client_ca",
        "tls.key",
    }
    for each in nones:
        assert shown(each.flag, "none", **{each.variable: "x:1"})[each.key]["value"] is None


def test_a_switch_may_stand_without_a_value() -> None:
    assert shown("--insecure", "--threads", "3")["insecure"]["value"] is True
    assert shown("--insecure", "false")["insecure"]["value"] is False
    Path("bptt.toml").write_text("insecure = 1\n")
    assert "insecure is 1, but must be true or false" in refused()


def test_profiles_of_clients_are_no_settings_of_the_server() -> None:
    Path("bptt.toml").write_text('threads = 4\n[profile.default]\naddress = "x:1"\n')
    assert shown()["threads"]["value"] == 4


def test_the_table_shows_value_and_source() -> None:
    Path("bptt.toml").write_text("[kept]\ncheckpoints = 5\n")
    done = CliRunner().invoke(command, ["--threads", "7"], env={"BPTT_DATA": "models"})
    assert done.exit_code == 0
    cells = [re.split(r" {2,}", line.strip()) for line in done.output.splitlines()]
    rows = {row[0]: row[1:] for row in cells}
    assert rows.keys() - {"setting"} == {each.key for each in FIELDS}
    assert rows["threads"] == ["7", "--threads"]
    assert rows["data"] == ["models", "BPTT_DATA"]
    assert rows["kept.checkpoints"] == ["5", "bptt.toml, line 2"]


def test_a_refused_configuration_starts_and_creates_nothing(tmp_path: Path) -> None:
    Path("bptt.toml").write_text('data = "models"\n[limits]\nqueue_chunks = 0\n')
    done = run("serve", "--address", "127.0.0.1:0", "--metrics-address", "none")
    assert done.status == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert "limits.queue_chunks (bptt.toml, line 3) is 0, but must be at least 1" in done.err
    assert os.listdir(tmp_path) == ["bptt.toml"]
