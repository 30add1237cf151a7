"""Where a run's records go: a JSON Lines file, always, and Weights & Biases (W&B) beside it.

The file is the truth and W&B a copy to look at, so W&B never stops, delays or asks anything of a training. Without a
key, a network or a right password the run goes offline by itself, complete and under the same id, and one line says
how to upload it later; a server lost in mid-run costs a bounded wait at the end; a killed W&B process costs the copy.
All that W&B writes lies inside the run's directory. This is the only file that imports wandb, and only inside
functions: importing it is instant, and a disabled run never loads wandb. Of several ranks only rank 0 opens W&B.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from urllib.request import getproxies

from rlgns.runs.network import is_reachable
from rlgns.runs.records import RecordWriter, plain

if TYPE_CHECKING:
    import wandb

Mode = Literal["online", "offline", "disabled"]
Say = Callable[[str], None]

TRANSITIONS, EXAMPLES = "progress/transitions", "progress/examples"
INIT_TIMEOUT = 20.0  # seconds for a server that accepts connections and does not answer


class Sink(Protocol):
    """Takes what a run reports; `step` counts updates and never falls."""

    def log(self, record: Mapping[str, object], step: int) -> None:
        """Take the one record of update `step`."""

    def log_figure(self, key: str, path: Path, step: int) -> None:
        """Take a PNG that belongs to update `step`, before or after its record."""

    def log_artifact(self, path: Path, name: str, kind: str) -> None:
        """Take a file worth keeping, such as the records or a checkpoint."""

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Take the run's final numbers and how it ended; nothing is logged afterwards."""


class JsonLines:
    """Records to a file. Figures and artifacts need no copy: they lie in the run's directory already."""

    def __init__(self, path: Path, resumed_at: int | None = None) -> None:
        self._writer = RecordWriter(path)
        if resumed_at is not None:  # the update of the checkpoint from which the run continues
            self._writer.mark_resumed(resumed_at)

    def log(self, record: Mapping[str, object], step: int) -> None:
        """Append the record; the file holds it when this returns."""
        self._writer.write(record)

    def log_figure(self, key: str, path: Path, step: int) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, name: str, kind: str) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Close the file."""
        self._writer.close()


@dataclass(frozen=True, slots=True)
class WandbOptions:
    """How a run appears in W&B. `WANDB_MODE=offline` or `disabled` in the environment tames `online`."""

    mode: Mode = "online"
    project: str = "rlgns"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    name: str | None = None
    x_axis: str = TRANSITIONS
    finish_timeout: float = 60.0  # seconds that the end of a run may wait for uploads; 0: for ever


class WandbSink:
    """A run in W&B, online or offline, as `open_wandb` starts it. `run_id` is the agent's under a sweep."""

    def __init__(self, run: "wandb.Run", say: Say, cleanup: ExitStack) -> None:
        self.run_id: str = run.id
        self.folder = Path(run.dir).parent
        self.sync_command = f"wandb sync {'' if run.offline else '--include-online '}{self.folder}"
        self._run = run
        self._say = say
        self._cleanup = cleanup
        self._next_step = 0
        self._is_lost = False

    def log(self, record: Mapping[str, object], step: int) -> None:
        """Log what is not None in the record as the row of `step`, without waiting for the network.

        Raises ValueError if `step` does not grow: W&B would drop the row without a word.
        """
        if step < self._next_step:
            raise ValueError(f"step {step} comes after step {self._next_step - 1}; log one record per update, in order")
        self._tell(lambda: self._run.log(_present(record), step=step, commit=True))
        self._next_step = step + 1

    def log_figure(self, key: str, path: Path, step: int) -> None:
        """Log a PNG into the row of `step`; if that row is gone already, into the next one."""
        import wandb

        image = wandb.Image(str(path))
        self._next_step = max(step, self._next_step)
        self._tell(lambda: self._run.log({key: image}, step=self._next_step, commit=False))

    def log_table(self, key: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log rows of the same keys as a table into the next row."""
        import wandb

        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows], allow_mixed_types=True)
        self._tell(lambda: self._run.log({key: table}, step=self._next_step, commit=False))

    def log_artifact(self, path: Path, name: str, kind: str) -> None:
        """Log a copy of the file as artifact `name` of type `kind`."""
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        artifact.add_file(str(path))
        self._tell(lambda: self._run.log_artifact(artifact))

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Write the summary as plain scalars and the exit code, and upload for `finish_timeout` seconds at most.

        Ends wandb's own process, and with it any other W&B run of this process.
        """
        try:
            self._tell(lambda: self._run.summary.update(_present(summary)))
            self._tell(lambda: self._run.finish(exit_code=exit_code))
        except TimeoutError:
            self._say(f"W&B did not get everything in time; deliver the rest with: {self.sync_command}")
        finally:
            _teardown()
            self._cleanup.close()

    def _tell(self, message: Callable[[], object]) -> None:
        """Send a message to wandb's own process, which may have been killed: then say so once and go on."""
        from wandb.errors import Error
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        if self._is_lost:
            return
        try:
            message()
        except (ConnectionError, HandleAbandonedError, MailboxClosedError, Error):
            self._is_lost = True
            self._say(f"W&B's own process is gone, the run goes on; deliver what W&B has with: {self.sync_command}")


def _present(record: Mapping[str, object]) -> dict[str, Any]:
    return {key: value for key, value in plain(record).items() if value is not None}


def open_wandb(
    options: WandbOptions,
    run_dir: Path,
    config: Mapping[str, Any],
    run_id: str,
    *,
    resume: bool = False,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> WandbSink | None:
    """The W&B run `run_id` with its files in `run_dir`/wandb, offline if it cannot be online; None if disabled.

    With `resume` rows that the server has stay, and new ones at their steps are ignored; without, a run of the same id
    starts afresh. Under a sweep the agent's run id, project and entity hold. Why a run is offline is said in one line.

    Raises OSError if `run_dir` is not writable, where wandb would silently write elsewhere, and ValueError on options
    that W&B does not allow.
    """
    mode = _tamed(options.mode)
    if mode == "disabled":
        return None
    run_dir = run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=run_dir).close()
    with ExitStack() as stack:
        stack.enter_context(_environment(run_dir))
        stack.enter_context(_settings_in_words())
        in_sweep = bool(os.environ.get("WANDB_SWEEP_ID"))
        place = {} if in_sweep else {"id": run_id, "project": options.project, "entity": options.entity}
        labels = {name: getattr(options, name) or None for name in ("group", "job_type", "tags", "notes", "name")}
        how = {"dir": run_dir, "config": dict(config), "resume": "allow" if resume else None}
        with _stderr_to(run_dir / "wandb" / "core.log"):
            run, why = _start(mode, {**place, **labels, **how}, options.finish_timeout)
        run.define_metric(options.x_axis)
        run.define_metric("*", step_metric=options.x_axis)
        sink = WandbSink(run, say, stack.pop_all())
        if why:
            say(f"W&B is offline ({why}); upload later with: {sink.sync_command}")
        return sink


def _tamed(mode: Mode) -> Mode:
    tame: dict[str, Mode] = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}
    return tame.get(os.environ.get("WANDB_MODE", ""), mode) if mode == "online" else mode


@contextmanager
def _environment(run_dir: Path) -> Iterator[None]:
    """Staged artifacts and caches in the run's directory, no telemetry: wandb reads these from the environment only.

    Variables of W&B's that are set to nothing, which it refuses, count as not set.
    """
    ours = {f"WANDB_{kind}_DIR": str(run_dir / "wandb" / kind.lower()) for kind in ("DATA", "CACHE")}
    ours["WANDB_ERROR_REPORTING"] = "false"
    blank = {name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()}
    theirs = {name: os.environ.pop(name) for name in {*ours, *blank} if name in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        os.environ.update(theirs)


@contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """Send to a file what processes that are started inside will ever write to standard error: Go's stack traces."""
    try:
        terminal = os.dup(2)
    except OSError:  # there is none
        yield
        return
    log.parent.mkdir(exist_ok=True)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        if not log.stat().st_size:
            log.unlink()


@contextmanager
def _settings_in_words() -> Iterator[None]:
    """Inside, a setting of the environment or of wandb's own files that it refuses is one line."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(map(str, first["loc"]))
        raise ValueError(
            f"W&B refuses its setting {name} {first['input']!r} ({first['msg']}); "
            f"correct WANDB_{name.upper()} or give --wandb disabled"
        ) from None


def _start(mode: Mode, arguments: Mapping[str, Any], finish_timeout: float) -> tuple["wandb.Run", str]:
    """The run, and why it is offline if it is."""
    why = "as asked" if mode == "offline" else _obstacle()
    if not why:
        try:
            run = _init("online", arguments, finish_timeout)
            if run.entity:
                return run, ""
            why = "the server's answers make no sense"
            run.finish(exit_code=1)  # ends its threads, be it by an error
        except Exception as error:
            why = why or str(error).partition("\n")[0] or "no answer"
        _teardown()  # wandb would not let go of the failed run's id
    return _init("offline", arguments, finish_timeout), why  # which refuses options that are wrong, too


def _init(mode: Mode, arguments: Mapping[str, Any], finish_timeout: float) -> "wandb.Run":
    import wandb
    from wandb.errors import UsageError

    wandb.setup(wandb.Settings(silent=True))
    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT)
    settings.finish_timeout, settings.finish_timeout_raises = finish_timeout, True
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:  # what a kill -9 costs, in seconds
        settings.x_transaction_log_flush_interval = 1.0
    # create_new: never a run that this process has left open
    try:
        return wandb.init(**arguments, mode=mode, reinit="create_new", settings=settings)
    except UsageError as error:
        raise ValueError(f"W&B refuses these options: {' '.join(str(error).split())}") from None


def _obstacle() -> str:
    """Why W&B cannot be online here, found within seconds and without asking anybody; empty if it seems it can."""
    import wandb
    from wandb.errors import AuthenticationError

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    try:
        if not wandb.login(prompt=False, verify=False):
            return "no API key; `wandb login` stores one"
    except AuthenticationError as error:  # what is configured cannot be a key
        return str(error)
    proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
    if is_reachable(settings.base_url, {k: v for k, v in proxies.items() if v} or getproxies()):
        return ""
    return f"no connection to {settings.base_url}"


def _teardown() -> None:
    """End wandb's own process, without taking over its exit code as wandb would."""
    import wandb

    with suppress(ConnectionError, SystemExit):
        wandb.teardown()


def sweep_runs(path: str) -> list[dict[str, Any]]:
    """Every run of a W&B sweep (ENTITY/PROJECT/SWEEP) or project (ENTITY/PROJECT), in plain values.

    name, state ("finished", "running", "failed", …), config and summary by key, history as one dictionary a row.

    Raises ValueError where W&B cannot be asked, or has nothing of that name.
    """
    parts = path.strip("/").split("/")
    if len(parts) not in (2, 3):
        raise ValueError(f"'{path}' names no sweep or project of W&B; use ENTITY/PROJECT/SWEEP or ENTITY/PROJECT")
    with tempfile.TemporaryDirectory() as folder, _environment(Path(folder)):
        if why := _obstacle():
            raise ValueError(f"W&B cannot be asked for {path}: {why}")
        import wandb
        from wandb.errors import Error

        of_sweep = {"sweep": parts[2]} if len(parts) == 3 else None
        try:
            return [_plain_run(run) for run in wandb.Api().runs("/".join(parts[:2]), filters=of_sweep, lazy=False)]
        except (Error, ValueError) as error:
            raise ValueError(f"W&B gives no runs of {path}: {' '.join(str(error).split())}") from None
        finally:
            _teardown()


def _plain_run(run: Any) -> dict[str, Any]:
    rows = run.scan_history(use_cache=False) if run.lastHistoryStep >= 0 else ()  # wandb fails on a run without rows
    return {
        "name": run.id,
        "state": run.state,
        "config": _without_own(run.config),
        "summary": _without_own(dict(run.summary)),
        "history": [_without_own(row) for row in rows],
    }


def _without_own(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a run logged, without W&B's own keys (_step, _timestamp, …)."""
    return {key: value for key, value in values.items() if not key.startswith("_")}
