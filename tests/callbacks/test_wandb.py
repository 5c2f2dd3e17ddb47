"""W&B that cannot be reached or refuses the key: the run continues offline and prints how to sync."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import wandb
from wandb.sdk.lib.wbauth import unauthenticate_session

from callbacks import loggers
from callbacks.run_record import RunRecord

KEY = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def server(status: int, answer: bytes):
    """A server on this machine that gives every request this answer; yields its address and the requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            requests.append((self.path, self.headers["Authorization"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", requests
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture
def closed():
    with socket.socket() as held:  # bound and not listening: the port is taken and does not answer
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def silent():
    """A server that accepts every connection and answers none; yields its address and the connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held = []

        def accept():
            with contextlib.suppress(OSError):  # until it is shut down
                while True:
                    held.append(listening.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", held
        listening.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    loggers.wandb_problem.cache_clear()
    loggers._report_offline.cache_clear()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    yield
    unauthenticate_session()  # W&B keeps the key for all runs of the process


def test_a_key_that_is_accepted_logs_online(monkeypatch, capsys):
    with server(200, json.dumps({"data": {"viewer": {"id": "x"}}}).encode()) as (url, requests):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert loggers.wandb_mode() == "offline"  # not logged in
        assert not requests
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        assert loggers.wandb_mode() == loggers.wandb_mode() == "online"
    assert [path for path, _ in requests] == ["/graphql"]  # once
    assert requests[0][1].startswith("Basic ")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (401, b"", "refuses the API key"),
        (200, b'{"data": {"viewer": null}}', "refuses the API key"),
        (502, b"", "answers 502"),
        (200, b"<html>log in to the hotel's network</html>", "cannot be reached"),
    ],
)
def test_a_key_that_is_refused_goes_offline(monkeypatch, capsys, status, answer, expected):
    with server(status, answer) as (url, _):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        for mode in ("", "online"):
            monkeypatch.setenv("WANDB_MODE", mode)
            assert loggers.wandb_mode() == "offline"
    (line,) = capsys.readouterr().err.splitlines()  # once
    for words in (url, expected, "continues offline", "wandb sync"):
        assert words in line


def test_a_key_in_netrc_is_found_and_wandb_mode_is_respected(monkeypatch, capsys, tmp_path, closed):
    monkeypatch.setenv("WANDB_BASE_URL", closed)
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert loggers.wandb_mode() == "offline"
    assert f"{closed} cannot be reached" in capsys.readouterr().err  # with the key
    for mode, expected in (("disabled", "disabled"), ("dryrun", "offline"), ("offline", "offline")):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert loggers.wandb_mode() == expected


SHORT = ["experiment=digits", "data/loader=torch", "recipe.epochs=1", "recipe.warmup_epochs=0"]
SHORT += ["+trainer.limit_train_batches=2", "trainer.log_every_n_steps=1"]


def offline(outcome) -> str:
    """The only warning of a run that finished offline with all its rows."""
    assert outcome.code == 0, outcome.err
    (folder,) = outcome.runs()
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    inspect = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", log.parent]
    lines = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [json.loads(line)["history"]["item"] for line in lines if '"type":"history"' in line]
    assert {0, 1} <= {row.get("trainer/global_step") for row in rows}
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("W&B: ")]
    assert "wandb sync RUN/wandb/offline-run-*" in line
    return line


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["port", "key"])
def test_a_run_finishes_offline(cli, monkeypatch, closed, wrong):
    with server(401, b"") as (refusing, _):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_BASE_URL", closed if wrong == "port" else refusing)
        offline(cli("train", *SHORT))


@pytest.mark.slow
def test_a_server_that_accepts_the_key_but_starts_no_run_costs_the_init_timeout_alone(cli, monkeypatch):
    with server(200, json.dumps({"data": {"viewer": {"id": "x"}}}).encode()) as (url, requests):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert "no run was started" in offline(cli("train", *SHORT, "logger.wandb.init_timeout=5"))
        assert len(requests) > 1


@pytest.mark.slow
def test_a_silent_server_is_contacted_once_before_the_first_step_and_never_waited_for(cli, monkeypatch, silent):
    url, held = silent
    requests = []
    for hook in ("on_train_batch_start", "on_train_epoch_end", "on_test_end"):
        monkeypatch.setattr(RunRecord, hook, noting(requests, held, getattr(RunRecord, hook)))
    monkeypatch.setattr(loggers, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", url)
    outcome = cli("train", *SHORT)
    assert [*requests, len(held)] == [1] * 5  # nothing waits for an answer, since no further request is sent
    assert f"{url} cannot be reached (ReadTimeout)" in offline(outcome)


def noting(requests, held, hook):
    def noted(*arguments):
        requests.append(len(held))
        hook(*arguments)

    return noted


@pytest.mark.parametrize("group", [None, "a_sweep"])
def test_the_id_of_the_environment_names_a_single_run_and_not_those_of_a_sweep(monkeypatch, tmp_path, group):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    ids = []
    for name in ("a", "b"):
        logger = loggers.OfflineFallbackWandbLogger(str(tmp_path / name), mode="disabled", group=group)
        ids.append(logger.experiment.id)
        loggers.finish_wandb(0)
    assert ids == ["mine", "mine"] if group is None else len({*ids, "mine"}) == 3
    (tmp_path / "a" / "wandb" / "offline-run-20200101_000000-earlier").mkdir(parents=True)
    assert (
        loggers.OfflineFallbackWandbLogger(str(tmp_path / "a"), mode="disabled", group=group).experiment.id == "earlier"
    )
    loggers.finish_wandb(0)
    with wandb.init(mode="disabled", settings=loggers.wandb_settings()) as measurement:
        assert measurement.id != "mine"
