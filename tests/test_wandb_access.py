"""W&B that cannot be reached or refuses the key: the run goes on offline and says how to sync."""

import contextlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from callbacks import wandb_access

KEY = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def server(status: int, answer: bytes):
    """A W&B on this machine that gives every request this answer; yields its address and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append((self.path, self.headers["Authorization"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", asked
    finally:
        http.shutdown()
        http.server_close()


@pytest.fixture
def closed():
    with socket.socket() as held:  # bound and not listening: nobody else takes the port, and nobody answers
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    wandb_access._told.cache_clear()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))


def test_a_key_that_is_accepted_logs_online(monkeypatch, capsys):
    with server(200, json.dumps({"data": {"viewer": {"id": "x"}}}).encode()) as (url, asked):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        assert wandb_access.wandb_mode() == "offline"  # nobody is logged in
        assert not asked
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        assert wandb_access.wandb_mode() == wandb_access.wandb_mode() == "online"
    assert [path for path, _ in asked] == ["/graphql"]  # once
    assert asked[0][1].startswith("Basic ")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("status", "answer", "says"),
    [
        (401, b"", "refuses the API key (401)"),
        (200, b'{"data": {"viewer": null}}', "does not know the API key"),
        (502, b"", "answers 502"),
        (200, b"<html>log in to the hotel's network</html>", "cannot be reached"),
    ],
)
def test_a_key_that_is_refused_goes_offline(monkeypatch, capsys, status, answer, says):
    with server(status, answer) as (url, _):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        for mode in ("", "online"):
            monkeypatch.setenv("WANDB_MODE", mode)
            assert wandb_access.wandb_mode() == "offline"
    (line,) = capsys.readouterr().err.splitlines()  # said once
    for words in (url, says, "goes on offline", "wandb sync"):
        assert words in line


def test_a_login_in_netrc_counts_and_a_mode_that_is_set_is_taken(monkeypatch, tmp_path, closed):
    monkeypatch.setenv("WANDB_BASE_URL", closed)
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {KEY}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_access._key_in_netrc("127.0.0.1") == KEY
    assert "cannot be reached" in wandb_access.refusal(closed, KEY)
    for mode, meant in (("disabled", "disabled"), ("dryrun", "offline"), ("offline", "offline")):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert wandb_access.wandb_mode() == meant


def test_a_server_that_never_answers_is_waited_for_no_longer_than_said(monkeypatch):
    monkeypatch.setattr(wandb_access, "SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "cannot be reached" in wandb_access.refusal(f"http://127.0.0.1:{silent.getsockname()[1]}", KEY)


@pytest.mark.parametrize("wrong", ["port", "key"])
def test_a_run_finishes_offline(cli, monkeypatch, closed, wrong):
    with server(401, b"") as (refusing, _):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", closed if wrong == "port" else refusing)
        short = ["recipe.epochs=1", "recipe.warmup_epochs=0", "+trainer.limit_train_batches=2"]
        outcome = cli("train", "experiment=digits", "data/loader=torch", *short)
    assert outcome.code == 0, outcome.err
    (folder,) = outcome.runs()
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    lines = [line for line in outcome.err.splitlines() if line.startswith("W&B: ")]
    assert len(lines) == 1
    assert "wandb sync" in lines[0]
