"""A run in Weights & Biases (W&B), online or offline, and the download of the runs of a W&B sweep.

The records file is authoritative and W&B holds a copy to look at, so W&B never stops or delays a training run and never
asks a question. Without an API key, a network connection or a valid login the run goes offline by itself, complete and
under the same id, and one line says how to upload it later. A server that is lost during the run costs a bounded wait
at the end; if W&B's own process is killed, the rest of the copy is lost. All that W&B writes lies inside the run's
directory. This is the only file that imports wandb, and only inside functions: importing it is instant, and a disabled
run never loads wandb. Of several ranks only rank 0 opens W&B.
"""

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies

from rlgns.runs.network import is_reachable
from rlgns.runs.verbosity import remark
from rlgns.runs.wandb_environment import settings_errors, stderr_redirected, wandb_environment
from rlgns.runs.wandb_options import Mode, WandbOptions
from rlgns.runs.wandb_rows import artifact_name, is_detail, plain_run, present

if TYPE_CHECKING:
    import wandb

Say = Callable[[str], None]

INIT_TIMEOUT = 20.0
"""Seconds to wait for a server that accepts connections and does not answer."""


class WandbSink:
    """Sink that logs to a W&B run, online or offline; `open_wandb` makes it.

    Attributes:
        run_id: The run's id in W&B; in a W&B sweep, the id that the agent has assigned.
        folder: Directory of the run's W&B files.
        sync_command: Shell command that uploads what the server lacks.
    """

    def __init__(self, run: "wandb.Run", say: Say, cleanup: ExitStack, options: WandbOptions) -> None:
        """Wrap a W&B run that has been started.

        Args:
            run: The W&B run.
            say: Called with one line for the person at the terminal.
            cleanup: Closed when the run is finished.
            options: How the run appears in W&B.
        """
        self.run_id: str = run.id
        self.folder = Path(run.dir).parent
        self.sync_command = f"wandb sync {'' if run.offline else '--include-online '}{self.folder}"
        self._run = run
        self._say = say
        self._cleanup = cleanup
        self._options, self._hidden = options, set[str]()
        self._in_sweep = bool(os.environ.get("WANDB_SWEEP_ID"))  # whose metric may be any key of the summary
        self._next_step = 0
        self._has_lost_wandb = False

    def log(self, record: Mapping[str, object], step: int) -> None:
        """Log the values of a record that are not None as the row of `step`, without waiting for the network.

        Raises:
            ValueError: If `step` does not increase; W&B would drop the row silently.
        """
        if step < self._next_step:
            raise ValueError(f"step {step} comes after step {self._next_step - 1}; log one record per update, in order")
        values = present(record)
        self._hide_details(values)
        self._send(lambda: self._run.log(values, step=step, commit=True))
        self._next_step = step + 1

    def log_figure(self, key: str, path: Path, step: int) -> None:
        """Log a PNG or MP4 file into the row of `step`, or into the next row if that one has been sent already."""
        import wandb

        is_video = path.suffix == ".mp4"
        image = wandb.Video(str(path), format="mp4") if is_video else wandb.Image(str(path))
        self._next_step = max(step, self._next_step)
        self._send(lambda: self._run.log({key: image}, step=self._next_step, commit=False))

    def log_table(self, key: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Log a table into the next row; its rows have the same keys."""
        import wandb

        table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows], allow_mixed_types=True)
        self._send(lambda: self._run.log({key: table}, step=self._next_step, commit=False))

    def log_artifact(
        self, paths: Sequence[Path], name: str, kind: str, metadata: Mapping[str, object] | None = None
    ) -> None:
        """Log copies of files as an artifact of type `kind`, with values to show; if they cannot be copied, say so."""
        import wandb

        if self._has_lost_wandb:
            return
        artifact = wandb.Artifact(artifact_name(name), type=kind, metadata=present(metadata or {}))
        try:
            for path in paths:
                artifact.add_file(str(path))
            self._run.log_artifact(artifact)
        except Exception as error:  # wandb asks the server first, and passes on whatever it makes of the answer
            reason = str(error).partition("\n")[0]
            self._say(f"W&B gets no artifact {artifact.name} ({reason}); the files stay in {paths[0].parent}")

    def log_model(self, paths: Sequence[Path], metadata: Mapping[str, object]) -> None:
        """Log the files of the model as an artifact of the type "model", if the options ask for it."""
        if self._options.artifacts:
            kept = {key: value for key, value in metadata.items() if not is_detail(key)}
            self.log_artifact(paths, f"model-{self.run_id}", "model", kept)

    def alert(self, title: str, text: str) -> None:
        """Send an alert, as the user has set them up in W&B: by e-mail or to Slack."""
        self._send(lambda: self._run.alert(title if len(title) < 64 else f"{title[:62]}…", text, level="ERROR"))

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Write the summary and the exit code, and upload for at most `WandbOptions.finish_timeout` seconds.

        This ends wandb's own process, and with it any other W&B run of this process.

        Args:
            summary: Scalars by key; those that are None are left out.
            exit_code: The run's exit code.
        """
        try:
            kept = {key: value for key, value in present(summary).items() if self._in_sweep or not is_detail(key)}
            self._send(lambda: self._run.summary.update(kept))
            self._send(lambda: self._run.finish(exit_code=exit_code))
        except TimeoutError:
            self._say(f"W&B did not receive everything in time; upload the rest with: {self.sync_command}")
        finally:
            _teardown()
            self._cleanup.close()

    def _hide_details(self, keys: Iterable[str]) -> None:
        """Hide new keys that are details, each by its name: a name takes precedence over the pattern `*`."""
        x_axis, summary = self._options.x_axis, None if self._in_sweep else "none"
        for key in sorted({key for key in keys if is_detail(key)} - self._hidden):
            name = key.replace(".", "\\.")  # a plain dot would lead into a nested value
            self._send(partial(self._run.define_metric, name, step_metric=x_axis, hidden=True, summary=summary))
            self._hidden.add(key)

    def _send(self, message: Callable[[], object]) -> None:
        """Call wandb; if its own process has been killed, say so once and from then on do nothing."""
        from wandb.errors import Error
        from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

        if self._has_lost_wandb:
            return
        try:
            message()
        except (ConnectionError, HandleAbandonedError, MailboxClosedError, Error):
            self._has_lost_wandb = True
            self._say(f"W&B's own process has ended, the run goes on; upload what W&B has with: {self.sync_command}")


def open_wandb(
    options: WandbOptions,
    run_dir: Path,
    config: Mapping[str, Any],
    run_id: str,
    *,
    resume: bool = False,
    say: Say = remark,
) -> WandbSink | None:
    """Start a run in W&B, offline if it cannot be online.

    Args:
        options: How the run appears in W&B. In a W&B sweep the agent's run id, project and entity take precedence.
        run_dir: The run's directory; W&B's files lie in its subdirectory wandb.
        config: The configuration that W&B shows.
        run_id: The run's id in W&B.
        resume: Whether rows that the server has are kept, and new rows with the same steps ignored; otherwise a run
            with the same id starts afresh.
        say: Called with one line that gives the reason if the run is offline.

    Returns:
        The sink; None if W&B is disabled.

    Raises:
        OSError: If `run_dir` is not writable; wandb would silently write elsewhere.
        ValueError: If W&B does not allow the options.
    """
    mode = options.effective_mode
    if mode == "disabled":
        return None
    run_dir = run_dir.resolve()
    run_dir.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=run_dir).close()
    with ExitStack() as stack:
        stack.enter_context(wandb_environment(run_dir))
        stack.enter_context(settings_errors())
        in_sweep = bool(os.environ.get("WANDB_SWEEP_ID"))
        place = {} if in_sweep else {"id": run_id, "project": options.project, "entity": options.entity}
        labels = {name: getattr(options, name) or None for name in ("group", "job_type", "tags", "notes", "name")}
        storage = {"dir": run_dir, "config": dict(config), "resume": "allow" if resume else None}
        with stderr_redirected(run_dir / "wandb" / "core.log"):
            run, reason = _start(mode, {**place, **labels, **storage}, options.finish_timeout)
        run.define_metric(options.x_axis)
        run.define_metric("*", step_metric=options.x_axis)
        sink = WandbSink(run, say, stack.pop_all(), options)
        if reason:
            say(f"W&B is offline ({reason}); upload later with: {sink.sync_command}")
        return sink


def _start(mode: Mode, arguments: Mapping[str, Any], finish_timeout: float) -> tuple["wandb.Run", str]:
    """Start the W&B run, online if possible.

    Returns:
        The run, and the reason why it is offline; empty if it is online.
    """
    reason = "as asked" if mode == "offline" else _obstacle()
    if not reason:
        try:
            run = _init("online", arguments, finish_timeout)
            if run.entity:
                return run, ""
            reason = "the server's answers make no sense"
            run.finish(exit_code=1)  # ends its threads, possibly by raising an error
        except Exception as error:
            reason = reason or str(error).partition("\n")[0] or "no answer"
        _teardown()  # wandb would otherwise keep the id of the failed run reserved
    return _init("offline", arguments, finish_timeout), reason  # this call also refuses options that are wrong


def _init(mode: Mode, arguments: Mapping[str, Any], finish_timeout: float) -> "wandb.Run":
    import wandb
    from wandb.errors import UsageError

    wandb.setup(wandb.Settings(silent=True))
    settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_TIMEOUT)
    settings.finish_timeout, settings.finish_timeout_raises = finish_timeout, True
    if "x_transaction_log_flush_interval" in wandb.Settings.model_fields:  # seconds of log that a kill -9 loses
        settings.x_transaction_log_flush_interval = 1.0
    # create_new: never join a run that this process has left open
    try:
        return wandb.init(**arguments, mode=mode, reinit="create_new", settings=settings)
    except UsageError as error:
        raise ValueError(f"W&B refuses these options: {' '.join(str(error).split())}") from None


def _obstacle() -> str:
    """The reason why W&B cannot be online here; empty if it seems that it can. Takes seconds and never prompts."""
    import wandb
    from wandb.errors import AuthenticationError

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    try:
        if not wandb.login(prompt=False, verify=False):
            return "no API key; `wandb login` stores one"
    except AuthenticationError as error:  # the configured text cannot be a key
        return str(error)
    proxies = {"http": settings.http_proxy, "https": settings.https_proxy}
    if is_reachable(settings.base_url, {k: v for k, v in proxies.items() if v} or getproxies()):
        return ""
    return f"no connection to {settings.base_url}"


def _teardown() -> None:
    """End wandb's own process without adopting its exit code, as wandb itself would."""
    import wandb

    with suppress(ConnectionError, SystemExit):
        wandb.teardown()


def sweep_runs(path: str) -> list[dict[str, Any]]:
    """Download the runs of a W&B sweep or project.

    Args:
        path: A sweep, ENTITY/PROJECT/SWEEP, or a project, ENTITY/PROJECT.

    Returns:
        One dictionary per run, of plain values: `name`, `state` ("finished", "running", "failed", …), `config` and
        `summary` by key, and `history` as a list with one dictionary per row.

    Raises:
        ValueError: If W&B cannot be reached, or has nothing of that name.
    """
    parts = path.strip("/").split("/")
    if len(parts) not in (2, 3):
        raise ValueError(f"'{path}' names no sweep or project of W&B; use ENTITY/PROJECT/SWEEP or ENTITY/PROJECT")
    with tempfile.TemporaryDirectory() as folder, wandb_environment(Path(folder)):
        if reason := _obstacle():
            raise ValueError(f"W&B cannot be asked for {path}: {reason}")
        import wandb
        from wandb.errors import Error

        filters = {"sweep": parts[2]} if len(parts) == 3 else None
        try:
            return [plain_run(run) for run in wandb.Api().runs("/".join(parts[:2]), filters=filters, lazy=False)]
        except (Error, ValueError) as error:
            raise ValueError(f"W&B gives no runs of {path}: {' '.join(str(error).split())}") from None
        finally:
            _teardown()
