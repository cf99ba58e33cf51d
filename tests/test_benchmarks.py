import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

from benchmarks import bulk, latency, scaling, worker
from benchmarks.__main__ import main
from benchmarks.processes import python_server
from benchmarks.report import Section, with_parts
from benchmarks.servers import capacity
from benchmarks.servers.replies import PATHS

ROOT = Path(__file__).parents[1]


def post(url):
    request = urllib.request.Request(url, data=b'{"model":"m","messages":[]}')  # noqa: S310
    try:
        with urllib.request.urlopen(request) as response:  # noqa: S310
            return response.status, json.load(response)
    except HTTPError as refusal:
        with refusal:
            return refusal.code, json.load(refusal)


def test_a_quick_run_compares_us_with_plain_aiohttp_in_a_table(tmp_path):
    output = tmp_path / "results.md"
    command = ["-m", "benchmarks", "--quick", "overhead", "--only", "aiohttp", "--only", "onellm-async"]
    run = subprocess.run(
        [sys.executable, *command, "--output", output], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    report = output.read_text(encoding="utf-8")
    assert report in run.stdout
    assert "CPUs, " in report
    assert "requests/s to a client of next to no cost" in report
    for name in ("aiohttp", "onellm-async, chat", "onellm-async, gather_chats"):
        assert re.search(rf"^\| {name} +\| +[\d,]+ \| +\d+ \| +\d+\.\d\d \| +\d+\.\d\d \|$", report, re.MULTILINE), name


def test_parts_that_are_measured_anew_take_their_places_in_the_report():
    def part(title, value, charted=None):
        return Section(title, "As before.", ("what", "figure"), [("x", value)], charted)

    report = "# Benchmarks\n\n" + "\n".join(
        (part("A", "1").markdown(), part("B", "2", "figure").markdown("charts/b.svg"), part("C", "3").markdown())
    )
    found = with_parts(report, [part("B", "20", "figure"), part("D", "4")], "python -m benchmarks b d")
    assert re.findall(r"^## (\w)|^\| x +\| +(\d+) \|", found, re.MULTILINE) == [
        *(("A", ""), ("", "1"), ("B", ""), ("", "20"), ("C", ""), ("", "3"), ("D", ""), ("", "4"))
    ]
    assert "](charts/b.svg)" in found
    assert found.count("with `python -m benchmarks b d`. As before.") == 2
    assert with_parts(found, [part("D", "4")], "python -m benchmarks b d") == found


def test_a_peer_that_is_not_installed_is_reported_as_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "async_batch_llm", None)
    target = {"root": "http://127.0.0.1:1", "in_flight": 1}
    found = worker.run("overhead", peer="async_batch", options={}, target=target, plan={"seconds": 1})
    assert found == {"absent": "async_batch_llm"}


def test_the_journal_is_measured_beside_a_commit_for_each_row(tmp_path):
    output = tmp_path / "results.md"
    command = [sys.executable, "-m", "benchmarks", "--quick", "journal", "--output", output]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=110, check=True)
    report = output.read_text(encoding="utf-8")
    for name in ("journal, 200 tasks", "a commit for each row, 1 task"):
        assert re.search(rf"^\| {name} +\|( +[\d,.]+ \|){{5}}$", report, re.MULTILINE), name


def test_costs_are_measured_as_lists_queues_and_paces_grow(tmp_path, monkeypatch):
    for module in (bulk, latency, scaling):  # a process of its own for each measurement is what the first test has
        monkeypatch.setattr(module, "measured", lambda subject, peer, **job: worker.run(subject, peer=peer, **job))
    output = tmp_path / "results.md"
    main(["--quick", "bulk", "latency", "scaling", "imports", "--output", str(output)])
    report = output.read_text(encoding="utf-8")
    for name in (
        "aiohttp, a pool of workers",
        "onellm-async, gather_chats",
        "onellm-async, chat",
        "10 under way",
        "0 waiting",
        "that is waiting",
        "import onellm_async",
        "onellm-async --help",
    ):
        assert re.search(rf"^\| {name} +\|( +-?[\d,.]+( \([^)]*\))? \|)+$", report, re.MULTILINE), name


def test_the_limited_server_refuses_what_its_bucket_does_not_cover_and_counts():
    with python_server("bucket", "--rate=0.001", "--burst=2", "--latency=0") as port:
        root = f"http://127.0.0.1:{port}"
        statuses = [post(root + path)[0] for path in ("/api", "/v1/chat/completions", "/api")]
        assert statuses == [200, 200, 429]
        assert post(f"{root}/stats") == (200, {"processed": 2, "refused": 1})
        post(f"{root}/reset")
        assert post(f"{root}/api")[0] == 200


def test_the_stand_in_for_nginx_answers_both_wire_formats_and_keeps_connections_alive():
    with python_server("fast") as port:
        for path, body in PATHS.items():
            assert post(f"http://127.0.0.1:{port}{path}") == (200, json.loads(body))
        assert capacity.measure(port, seconds=0.05) > 0
