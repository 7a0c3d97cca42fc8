"""A real Prometheus that scrapes a live server."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.tools import free_port, program

START_SECONDS = 60.0  # a loaded machine may take this long to start Prometheus and scrape once
POLL_SECONDS = 0.1

CONFIGURATION = """
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: [{rules}]
scrape_configs:
  - job_name: bptt
    static_configs:
      - targets: ["{target}"]
"""


@contextmanager
def prometheus(folder: Path, target: str, rules: Path | None = None) -> Iterator[str]:
    """Run a Prometheus on a free port that scrapes `target`; yield its address."""
    configuration = folder / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(target=target, rules=rules or ""))
    address = f"127.0.0.1:{free_port()}"
    log = folder / "prometheus.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [
                program("prometheus"),
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            yield address
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{log.read_text()[-4000:]}") from error
        finally:
            process.terminate()
            process.wait(timeout=30)


def query(address: str, expression: str) -> list[dict[str, Any]]:
    """Evaluate an expression in Prometheus; empty while Prometheus is starting."""
    parameters = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/query?{parameters}") as answer:
            result = json.load(answer)["data"]["result"]
    except (urllib.error.URLError, ConnectionError):
        return []
    assert isinstance(result, list)
    return result


def first_value(address: str, expression: str) -> float:
    """Wait until an expression has a value in Prometheus, and return it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = query(address, expression)
        if found:
            return float(found[0]["value"][1])
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"Prometheus has no value of {expression} after {START_SECONDS:.0f} s")
