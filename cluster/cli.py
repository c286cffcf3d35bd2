"""The command `rheos`. Heavy imports are inside the commands, so that `--help` is quick."""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from cluster.config import Settings
    from cluster.local_cluster import ClusterRecord
    from recommender.datasets import Dataset

app = typer.Typer(
    help="A recommender that never stops learning: events, training, serving on one Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Begin with `rheos demo`, or with `rheos up` and `rheos ingest PATH`.",
)
console = Console()

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Settings file (TOML); see README, Settings.")
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder of everything durable [default: rheos-data]."),
]
StorageArgument = Annotated[
    Path | None, typer.Argument(help="Folder of everything durable; rheos-data if none is named.")
]
PortOption = Annotated[
    int | None, typer.Option("--port", min=1, max=65_535, help="HTTP port [default: 8000].")
]
_DRAIN_TIMEOUT_S = 20.0
"""Above what any request may take with the default settings."""
MaxEventsOption = Annotated[int | None, typer.Option(min=1, help="Use only the first events.")]


def main() -> None:
    """Entry point: errors that a person can mend are printed as one paragraph, not a traceback."""
    try:
        app()
    except Exception as error:
        if not isinstance(error, _mendable_errors()):
            raise
        stderr = Console(stderr=True)
        stderr.print(f"[red]rheos:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


def _mendable_errors() -> tuple[type[Exception], ...]:
    from actors.messages import CorruptStorage, StorageError
    from cluster.config import SettingsError
    from cluster.downloads import DownloadError
    from cluster.http_client import ServiceError
    from cluster.local_cluster import ClusterError
    from recommender.datasets import DatasetError
    from recommender.implicit_factors import SolverMissing
    from recommender.text_encoder import TextEncoderError

    return (
        *(SettingsError, ClusterError, ServiceError),
        *(StorageError, CorruptStorage),
        *(DatasetError, DownloadError, TextEncoderError, SolverMissing),
    )


@app.command()
def up(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    port: PortOption = None,
    train: Annotated[bool, typer.Option(help="Submit the training job.")] = True,
) -> None:
    """Start the whole system on this machine: Ray, the actors, serving and the training job.

    Comes back when it answers; `rheos down` stops it. What was stored before is served again.
    """
    from cluster.launch import launch

    settings = _settings(config, data_dir, port)
    started = time.monotonic()
    try:
        with console.status("starting ...") as status:
            record = launch(settings, train=train, say=status.update)
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started is stopped again")
        raise typer.Exit(130) from None
    console.print(f"up after {time.monotonic() - started:.0f} s, storage in {record_dir(settings)}")
    console.print(f"  HTTP       {record.http_url}   (GET /v1/model, POST /v1/recommend)")
    console.print(f"  dashboard  {record.dashboard_url}")
    console.print('  ray tools  eval "$(rheos env)"; ray job list; serve status')
    console.print("  next       rheos ingest PATH; rheos status; rheos down")


@app.command()
def down(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Stop the system that runs on a storage folder. Acknowledged events and versions stay.

    The port is closed at once; requests that were taken before that are still answered.
    """
    from cluster.launch import shut_down
    from cluster.local_cluster import find_cluster

    settings = _settings(config, data_dir, None)
    record = find_cluster(settings.storage.data_dir)
    if record is not None:
        with console.status("finishing requests ..."):
            _drain(record)
    with console.status("stopping ..."):
        num_processes = shut_down(settings)
    if num_processes:
        console.print(f"stopped {num_processes} processes")
    else:
        console.print(f"nothing runs on {record_dir(settings)}")


@app.command()
def deploy(
    config: ConfigOption = None, data_dir: DataDirOption = None, port: PortOption = None
) -> None:
    """Roll the replicas of a running system to the `serving` settings of --config.

    One after another: each goes when another one serves in its place. They run the code that is
    installed now. What is set elsewhere, host and port take effect with `rheos down` and
    `rheos up`; if that differs, nothing is done.
    """
    from cluster.launch import roll_replicas

    settings = _settings(config, data_dir, port)
    record = _running(settings)
    started = time.monotonic()
    with console.status("replacing the replicas ..."):
        num_replicas = roll_replicas(settings, record)
    console.print(f"{num_replicas} new replicas after {time.monotonic() - started:.0f} s")


@app.command()
def status(
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second.")] = False,
) -> None:
    """Show how every part is: shards, catalogue, counters, versions, replicas, training job."""
    from rich.live import Live

    settings = _settings(config, data_dir, None)
    record = _running(settings)
    if not record.has_head():
        _say(
            f"[yellow]the process that watches over Ray ({record.pid}) died: all goes on, but not "
            "if Ray's control store dies too; `rheos down` and `rheos up` at a quiet moment[/]"
        )
    _attach(record)
    if not watch:
        console.print(_status_table(settings, record))
        return
    with Live(_status_table(settings, record), console=console, auto_refresh=False) as live:
        try:
            while True:
                live.update(_status_table(settings, record), refresh=True)
                time.sleep(1.0)
        except KeyboardInterrupt:
            return


@app.command()
def env(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Print the variables with which `ray` and `serve` find this cluster: eval "$(rheos env)"."""
    record = _running(_settings(config, data_dir, None))
    for name, value in record.environment().items():
        print(f"export {name}={shlex.quote(value)}")


@app.command()
def settings() -> None:
    """Print every setting with its default and meaning, as TOML: rheos settings > rheos.toml."""
    from cluster.config import describe_settings

    section = ""
    for line in describe_settings():
        if line.section != section:
            print(f"{'' if not section else chr(10)}[{line.section}]")
            section = line.section
        print(f"# {line.meaning}\n# {line.key} = {line.default}")


@app.command()
def ingest(
    path: Annotated[Path, typer.Argument(help="Parquet or MovieLens folder, CSV or JSON lines.")],
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first events.")] = None,
) -> None:
    """Put a file's items and post its events, in order. Running it twice changes nothing."""
    from rich.progress import Progress

    from cluster.http_client import ServiceClient, batches, event_body, item_body
    from recommender.datasets import read_dataset

    dataset = read_dataset(path)
    num_events = min(len(dataset), limit or len(dataset))

    async def send() -> tuple[int, int]:
        accepted = duplicates = 0
        async with ServiceClient(url) as client:
            with Progress(console=console) as progress:
                bar = progress.add_task("items", total=len(dataset.items))
                for items in batches(dataset.items, 250):
                    body = {"items": [item_body(item) for item in items]}
                    await client.request("PUT", "/v1/items", body)
                    progress.advance(bar, len(items))
                bar = progress.add_task("events", total=num_events)
                for events in batches(dataset.events(0, num_events), 1_000):
                    answer = await client.request(
                        "POST", "/v1/events", {"events": [event_body(e) for e in events]}
                    )
                    accepted += answer["accepted"]
                    duplicates += answer["duplicates"]
                    progress.advance(bar, len(events))
        return accepted, duplicates

    accepted, duplicates = asyncio.run(send())
    console.print(f"{len(dataset.items)} items put, {accepted} events accepted, {duplicates} known")


@app.command()
def recommend(
    user: Annotated[str, typer.Argument(help="User id; an unknown one is a new user.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    category: Annotated[list[str] | None, typer.Option(help="Only these categories.")] = None,
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
) -> None:
    """Ask the running service what it recommends to a user, and why."""
    from cluster.http_client import ServiceClient

    async def ask() -> dict[str, Any]:
        body: dict[str, Any] = {"user_id": user, "k": k}
        if category:
            body["categories"] = category
        async with ServiceClient(url) as client:
            return await client.request("POST", "/v1/recommend", body, num_tries=3)

    answer = asyncio.run(ask())
    title = f"for {user}, version {answer['model_version']}, {answer['served']}"
    table = Table(title=escape(title))
    for heading in ("item", "title", "score", "shares"):
        table.add_column(heading)
    for item in answer["items"]:
        shares = " ".join(f"{name} {share:.0%}" for name, share in item["shares"].items())
        table.add_row(
            escape(item["item_id"]),
            escape(item.get("title") or ""),
            f"{item['score']:.3f}",
            shares,
        )
    console.print(table)
    if reason := answer.get("reason"):
        console.print(escape(f"nothing to recommend: {reason}"))
    console.print(
        f"history of {answer['history_length']} items; weights miss the last "
        f"{answer['staleness_ms']} ms; request {answer['request_id']}"
    )


@app.command()
def verify(
    data_dir: StorageArgument = None,
    config: ConfigOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only what is damaged.")] = False,
) -> None:
    """Read every file of a stopped system's storage and say which are damaged, where, what is lost.

    Log, catalogue and model versions are checked against their checksums; nothing is written. Lost
    offsets are those of acknowledged events that are in no file. Ends with 1 if anything is
    damaged: restore the folder from a backup, or see `rheos repair --help`.
    """
    from actors.storage_check import check_storage

    folder = _storage_folder(config, data_dir)
    num_files = num_damaged = 0
    with _stopped(folder):
        for report in check_storage(folder):
            num_files += 1
            num_damaged += report.is_damaged
            if report.is_damaged or not quiet:
                state = "[red]damaged[/]" if report.is_damaged else "ok     "
                _say(f"{state}  {_below(folder, report.path)}  {_without(folder, report.detail)}")
            for first, stop in report.lost:
                _say(f"         lost: offsets {first} to {stop - 1} ({stop - first} events)")
    console.print(f"{num_files} files, {num_damaged} damaged, in {folder}", soft_wrap=True)
    raise typer.Exit(1 if num_damaged else 0)


@app.command()
def repair(
    data_dir: StorageArgument = None,
    config: ConfigOption = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Do it; without, only what is damaged is shown.")
    ] = False,
) -> None:
    """Make a damaged storage folder of a stopped system usable, at the price of what is damaged.

    A damaged log is written again from every event that can be read; what is behind a gap gets new
    offsets, and the head is published once more to fit them. A damaged version goes, and another
    one becomes the head. Nothing is deleted: files are kept as they were found, below `damaged/`.
    Make a copy of the folder first.
    """
    from actors.storage_check import check_storage
    from actors.storage_repair import repair_storage

    folder = _storage_folder(config, data_dir)
    segment_bytes = _settings(config, None, None).buffer.segment_bytes
    with _stopped(folder):
        if not accept_loss:
            damaged = [report for report in check_storage(folder) if report.is_damaged]
            for report in damaged:
                _say(f"{_below(folder, report.path)}  {_without(folder, report.detail)}")
            console.print(
                "nothing was done; `rheos repair --accept-loss` goes on without what is damaged"
                if damaged
                else f"nothing is damaged in {folder}",
                soft_wrap=True,
            )
            raise typer.Exit(1 if damaged else 0)
        num_repairs = 0
        for done in repair_storage(folder, segment_bytes):
            num_repairs += 1
            _say(f"{_below(folder, done.path)}  {escape(done.done)}")
            for first, stop in done.lost:
                _say(f"  lost: offsets {first} to {stop - 1} ({stop - first} events)")
    kept = f"; what was found is in {folder / 'damaged'}" if num_repairs else ""
    console.print(f"{num_repairs} repairs{kept}", soft_wrap=True)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(help="Where the files go; made if missing.")],
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write every event of a stopped system as Parquet, one file a shard, in the order of offsets.

    `pandas.read_parquet(FOLDER)` reads all of them, with the columns that clients sent and `shard`,
    `offset` and `acknowledged_ms`. A damaged log is refused.
    """
    from actors.log_export import export_log

    storage = _storage_folder(config, data_dir)
    with _stopped(storage):
        for path, num_events in export_log(storage, folder):
            console.print(f"{path}  {num_events} events", soft_wrap=True)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Option("--data", help="A stream: folder or file.")],
    report: Annotated[Path, typer.Option("--report", help="Where the JSON goes.")] = Path(
        "report.json"
    ),
    config: ConfigOption = None,
    rankings: Annotated[
        str | None, typer.Option(help="Comma-separated; default all that are cheap.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "0",
    max_events: MaxEventsOption = None,
    include_seen: Annotated[
        bool, typer.Option("--include-seen", help="Also rank what a user had (shops).")
    ] = False,
    baskets: Annotated[
        bool, typer.Option("--baskets", help="Predict the first line of every basket (shops).")
    ] = False,
) -> None:
    """Replay a stream in this process, no cluster, and measure every ranking.

    Each event is predicted before it is learned. The first half warms up, every fifth event of the
    rest (or the first of every basket) is scored, and the means cover the last three quarters.
    """
    from cluster.evaluation import run_evaluation
    from recommender.evaluation_settings import RANKINGS

    chosen = rankings.split(",") if rankings else None
    if unknown := sorted(set(chosen or ()) - set(RANKINGS)):
        there_are = ", ".join(RANKINGS)
        raise typer.BadParameter(f"no ranking {', '.join(unknown)}; there are {there_are}")
    if not all(seed.isdecimal() for seed in seeds.split(",")):
        raise typer.BadParameter(f"seeds are whole numbers with commas between, not {seeds!r}")
    run_evaluation(
        data,
        report,
        _settings(config, None, None),
        rankings=chosen,
        seeds=[int(seed) for seed in seeds.split(",")],
        max_events=max_events,
        protocol="baskets" if baskets else "events",
        exclude_seen=not include_seen,
        console=console,
        command=shlex.join(["rheos", *sys.argv[1:]]),
    )


@app.command()
def demo(
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="A stream's folder or file, or a name to download (ml-100k, ml-1m); "
            "with neither, a simulated stream with one drift.",
        ),
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Events a second.")] = 250.0,
    max_events: MaxEventsOption = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo-out"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running afterwards.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
    port: PortOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated stream.")] = 0,
) -> None:
    """The main job, end to end: warm up on half a stream, replay the rest while learning, report.

    Uses a fresh temporary storage folder unless --data-dir is given.
    """
    from cluster.demo import DemoOptions, remove_storage, run_demo, temporary_storage

    dataset, drift_at = _demo_stream(data, seed)
    is_temporary = data_dir is None and not keep
    storage = temporary_storage() if is_temporary else data_dir
    settings = _settings(config, storage, port)
    options = DemoOptions(
        events_per_s=rate,
        max_events=max_events,
        out_dir=out,
        keep=keep,
        drift_at=drift_at,
        command=shlex.join(["rheos", *sys.argv[1:]]),
        seed=seed,
    )
    try:
        code = run_demo(dataset, settings, options, console)
    except KeyboardInterrupt:
        console.print("interrupted; everything that was started is stopped again")
        raise typer.Exit(130) from None
    finally:
        if is_temporary and storage is not None:
            remove_storage(storage)
    raise typer.Exit(code)


def record_dir(settings: Settings) -> Path:
    """The storage folder, for messages."""
    return settings.storage.data_dir


def _settings(config: Path | None, data_dir: Path | None, port: int | None) -> Settings:
    from cluster.config import load_settings

    if config is None and Path("rheos.toml").exists():
        config = Path("rheos.toml")
    settings = load_settings(config, data_dir)
    if port is None:
        return settings
    serving = settings.serving.model_validate({**settings.serving.model_dump(), "port": port})
    return settings.model_copy(update={"serving": serving})


def _storage_folder(config: Path | None, data_dir: Path | None) -> Path:
    """The storage folder, which must be there."""
    from cluster.local_cluster import ClusterError

    folder = _settings(config, data_dir, None).storage.data_dir
    if not (folder / "installation.json").exists() and not (folder / "events").exists():
        raise ClusterError(f"{folder} is no storage folder; name one, see `--help`")
    return folder


@contextmanager
def _stopped(folder: Path) -> Iterator[None]:
    """Hold a storage folder while nothing else is at work on it."""
    from actors.messages import StorageError
    from actors.storage_folder import hold_all
    from cluster.local_cluster import ClusterError, find_cluster

    if (record := find_cluster(folder)) is not None:
        raise ClusterError(
            f"a system runs on {folder} (pid {record.pid}); stop it first with `rheos down`"
        )
    with ExitStack() as held:
        try:
            held.enter_context(hold_all(folder))
        except StorageError as error:
            raise ClusterError(f"{error}; stop it first with `rheos down`") from error
        yield


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)


def _below(folder: Path, path: Path) -> str:
    return escape(str(path.relative_to(folder)))


def _without(folder: Path, detail: str) -> str:
    return escape(detail.replace(f"{folder}/", ""))


def _running(settings: Settings) -> ClusterRecord:
    from cluster.local_cluster import ClusterError, find_cluster

    record = find_cluster(settings.storage.data_dir)
    if record is None:
        raise ClusterError(
            f"nothing runs on {settings.storage.data_dir}; start it with `rheos up`, "
            "or name the folder with --data-dir"
        )
    return record


def _attach(record: ClusterRecord) -> None:
    from cluster.local_cluster import attach

    attach(record)


def _drain(record: ClusterRecord) -> None:
    """Let requests in flight finish; a cluster too ill for that is ended all the same."""
    from cluster.ingress_close import close_ingress
    from cluster.local_cluster import attach, has_haproxy

    if has_haproxy():
        if not close_ingress(record.mark, _DRAIN_TIMEOUT_S):
            console.print(f"requests went on for over {_DRAIN_TIMEOUT_S:g} s; stopping anyway")
        return
    try:
        attach(record)
        from ray import serve

        serve.shutdown()
    except (ConnectionError, RuntimeError, TimeoutError) as error:
        console.print(f"could not drain ({error!r:.200}); stopping anyway")


def _demo_stream(data: str | None, seed: int) -> tuple[Dataset, int | None]:
    from recommender.datasets import read_dataset

    if data is None:
        from recommender.simulator import SimulatorSettings, simulate

        drift_at = 12_000
        settings = SimulatorSettings(num_events=16_000, drift_at=drift_at, seed=seed)
        return simulate(settings), drift_at
    path = Path(data)
    if not path.exists() and "/" not in data:
        from cluster.downloads import fetch

        path = fetch(data, Path.home() / ".cache" / "rheos")
    return read_dataset(path), None


def _status_table(settings: Settings, record: ClusterRecord) -> Table:
    from cluster.status_view import part_lines
    from cluster.system import system_status

    state = system_status(settings)
    table = Table(title=f"rheos on {record_dir(settings)}, {record.http_url}")
    table.add_column("part")
    table.add_column("state")
    table.add_column("figures", overflow="fold")
    for line in part_lines(state, _model(record), time.time_ns() // 1_000_000):
        table.add_row(line.part, escape(line.state), escape(line.figures))
    return table


def _model(record: ClusterRecord) -> dict[str, Any] | None:
    """The answer to `GET /v1/model`, if the service gives one."""
    from cluster.http_client import ServiceClient, ServiceError

    async def ask() -> dict[str, Any]:
        async with ServiceClient(record.http_url) as client:
            return await client.request("GET", "/v1/model", num_tries=1)

    try:
        return asyncio.run(ask())
    except ServiceError:
        return None  # which is then what the table says


if __name__ == "__main__":
    main()
