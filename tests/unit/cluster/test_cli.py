import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import typer
from aiohttp import web
from aiohttp.test_utils import TestServer
from stream_files import write_stream
from typer.testing import CliRunner

from cluster import cli
from cluster.config import Settings, load_settings
from cluster.local_cluster import mark_of
from recommender.datasets import Dataset, read_dataset
from recommender.simulator import SimulatorSettings, simulate

COMMANDS = (
    *("up", "down", "deploy", "status", "env", "settings", "ingest", "recommend"),
    *("verify", "repair", "export", "evaluate", "demo"),
)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rheos.toml` and `rheos-data` are looked for in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli.console, "_width", 200)


def rheos(*arguments: str, exit_code: int = 0) -> str:
    """Run the command line; what it prints, usage errors included."""
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == exit_code, (result.output, result.exception)
    return result.output


def complaint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """What the installed command says on stderr when it ends with 2."""
    monkeypatch.setattr(sys, "argv", ["rheos", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert "Traceback" not in printed.err + printed.out
    return printed.err


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_the_help_names_every_command_and_where_to_begin(arguments: tuple[str, ...]) -> None:
    text = CliRunner().invoke(cli.app, arguments).output
    assert [name for name in COMMANDS if f" {name} " not in text] == []
    assert "Begin with `rheos demo`" in text


def test_every_command_and_every_option_is_explained() -> None:
    group: Any = typer.main.get_command(cli.app)
    assert set(group.commands) == set(COMMANDS)
    for name, command in group.commands.items():
        text = " ".join(rheos(name, "--help").split())
        assert " ".join(command.help.split("\n\n")[0].split()) in text
        unexplained = [parameter.name for parameter in command.params if not parameter.help]
        assert (name, unexplained) == (name, [])


def test_a_package_that_a_setting_needs_is_asked_for_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rheos.toml").write_text("[ials]\nenabled = true\n")
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    monkeypatch.setattr("cluster.launch.start_ray", lambda _: pytest.fail("started"))
    said = complaint(monkeypatch, capsys, "up")
    assert said.startswith("rheos: ")
    assert "pip install 'rheos[ials]'" in said
    assert not (tmp_path / "rheos-data").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("ingest", "nowhere"), ["nowhere", "interactions.parquet"]),
        (("evaluate", "--data", "nowhere.csv"), ["nowhere.csv"]),
        (("up", "--config", "none.toml"), ["none.toml", "No such file"]),
        (("status",), ["nothing runs on", "rheos-data", "rheos up", "--data-dir"]),
        (("env", "--data-dir", "elsewhere"), ["nothing runs on", "elsewhere"]),
        (("recommend", "u", "--url", "http://127.0.0.1:9"), ["http://127.0.0.1:9", "not answer"]),
    ],
)
def test_what_a_person_can_mend_is_one_paragraph(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    parts: list[str],
) -> None:
    said = complaint(monkeypatch, capsys, *arguments)
    assert said.startswith("rheos: ")
    assert [part for part in parts if part not in said] == []


def test_a_refused_setting_is_named_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rheos.toml").write_text("[loop]\nround_evnets = [5]\n")
    said = complaint(monkeypatch, capsys, "up")
    assert "rheos.toml: 1 setting(s) refused" in said
    assert "loop.round_evnets" in said
    assert "[5]" in said, "a value in brackets is not markup"
    assert not (tmp_path / "rheos-data").exists()
    assert not Path(mark_of(tmp_path / "rheos-data")).exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("up", "--port", "70000"), "--port"),
        (("recommend", "u", "-k", "0"), "-k"),
        (("demo", "--rate", "0"), "--rate"),
        (("evaluate", "--data", "x.csv", "--rankings", "rules,best"), "no ranking best; there are"),
        (("evaluate", "--data", "x.csv", "--seeds", "1,two"), "'1,two'"),
        (("evaluate", "--data", "x.csv", "--max-events", "0"), "--max-events"),
        (("ingest", "x.csv", "--limit", "-1"), "--limit"),
    ],
)
def test_a_value_out_of_range_is_a_usage_error(arguments: tuple[str, ...], part: str) -> None:
    assert part in rheos(*arguments, exit_code=2)


def test_the_printed_settings_are_a_file_that_changes_nothing_until_a_line_is_let_in(
    tmp_path: Path,
) -> None:
    text = rheos("settings")
    path = tmp_path / "printed.toml"
    path.write_text(text)
    assert load_settings(path) == load_settings()
    path.write_text(text.replace("# port = 8000", "port = 8123"))
    assert load_settings(path).serving.port == 8123
    settings = [line for line in text.splitlines() if line.startswith("# ") and " = " in line]
    assert len(settings) == sum(len(type(s).model_fields) for _, s in Settings())


def test_stopping_what_does_not_run_says_so(tmp_path: Path) -> None:
    assert f"nothing runs on {tmp_path / 'rheos-data'}" in rheos("down")


class FakeService:
    """Remembers what it is asked; knows one list of recommendations."""

    def __init__(self) -> None:
        self.url = ""
        self.bodies: list[tuple[str, Any]] = []
        self.known: set[str] = set()
        self.answer: dict[str, Any] = {
            "model_version": 7,
            "served": "blend",
            "history_length": 3,
            "staleness_ms": 250,
            "request_id": "r-1",
            "items": [
                {
                    "item_id": "item-[1]",
                    "title": "Tea [green]",
                    "score": 1.25,
                    "shares": {"net": 0.75, "rules": 0.25},
                },
                {"item_id": "item-2", "title": None, "score": -0.5, "shares": {}},
            ],
        }

    async def recommend(self, request: web.Request) -> web.Response:
        self.bodies.append(("recommend", await request.json()))
        return web.json_response(self.answer)

    async def items(self, request: web.Request) -> web.Response:
        self.bodies.append(("items", (await request.json())["items"]))
        return web.json_response({})

    async def events(self, request: web.Request) -> web.Response:
        events = (await request.json())["events"]
        self.bodies.append(("events", events))
        new = {event["event_id"] for event in events} - self.known
        self.known |= new
        answer = {"accepted": len(new), "duplicates": len(events) - len(new)}
        return web.json_response(answer, status=202)

    def sent(self, kind: str) -> list[Any]:
        return [body for name, bodies in self.bodies if name == kind for body in bodies]


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    made = FakeService()
    application = web.Application()
    application.router.add_post("/v1/recommend", made.recommend)
    application.router.add_put("/v1/items", made.items)
    application.router.add_post("/v1/events", made.events)
    async with TestServer(application) as server:
        made.url = str(server.make_url("/"))
        yield made


async def test_recommendations_are_shown_with_why_and_how_fresh_they_are(
    service: FakeService,
) -> None:
    text = await asyncio.to_thread(
        rheos, "recommend", "user [7]", "-k", "2", "--category", "a", "--url", service.url
    )
    assert service.bodies == [
        ("recommend", {"user_id": "user [7]", "k": 2, "categories": ["a"]}),
    ]
    for part in ("for user [7], version 7, blend", "item-[1]", "Tea [green]", "1.250", "-0.500"):
        assert part in text
    assert "net 75% rules 25%" in text
    assert "history of 3 items; weights miss the last 250 ms; request r-1" in text


async def test_when_nothing_is_recommended_the_reason_is_told(service: FakeService) -> None:
    service.answer |= {"items": [], "reason": "no item is of [these] categories"}
    text = await asyncio.to_thread(rheos, "recommend", "u", "--url", service.url)
    assert "nothing to recommend: no item is of [these] categories" in text


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    made = simulate(SimulatorSettings(num_users=100, num_items=300, num_events=1_100, seed=2))
    path = write_stream(made, tmp_path_factory.mktemp("stream"))
    return path, read_dataset(path)


async def test_ingesting_puts_all_items_before_all_events_in_order_and_twice_changes_nothing(
    service: FakeService, stream: tuple[Path, Dataset]
) -> None:
    path, dataset = stream
    first = await asyncio.to_thread(rheos, "ingest", str(path), "--url", service.url)
    assert [kind for kind, _ in service.bodies] == ["items", "items", "events", "events"]
    assert [i["item_id"] for i in service.sent("items")] == [i.item_id for i in dataset.items]
    assert [e["event_id"] for e in service.sent("events")] == [e.event_id for e in dataset.events()]
    assert "300 items put, 1100 events accepted, 0 known" in first
    again = await asyncio.to_thread(rheos, "ingest", str(path), "--url", service.url)
    assert "300 items put, 0 events accepted, 1100 known" in again


async def test_ingesting_may_be_limited_to_the_first_events(
    service: FakeService, stream: tuple[Path, Dataset]
) -> None:
    path, _ = stream
    text = await asyncio.to_thread(
        rheos, "ingest", str(path), "--limit", "10", "--url", service.url
    )
    assert "300 items put, 10 events accepted" in text
    assert len(service.sent("events")) == 10


def test_evaluating_writes_the_report_with_the_command_that_made_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = simulate(SimulatorSettings(num_users=20, num_items=24, num_events=200))
    path = write_stream(small, tmp_path)
    arguments = ["evaluate", "--data", str(path), "--report", "out/r.json", "--max-events", "100"]
    arguments += ["--rankings", "popularity,rules", "--seeds", "1,2", "--include-seen"]
    monkeypatch.setattr(sys, "argv", ["rheos", *arguments])
    text = rheos(*arguments)
    report = json.loads((tmp_path / "out" / "r.json").read_text())
    assert list(report["quality"]) == ["popularity", "rules"]
    assert report["scored"]["streamed"] == 50
    assert report["environment"]["seeds"] == "1,2"
    assert report["environment"]["exclude_seen"] is False
    assert report["environment"]["command"] == f"rheos {' '.join(arguments)}"
    assert f"{report['quality']['rules']['ndcg_at_10']:.4f}" in text
