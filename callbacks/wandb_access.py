"""Can this machine log to W&B? A run that cannot goes on offline, and says so, instead of failing or waiting."""

import base64
import contextlib
import functools
import json
import netrc
import os
import sys
import urllib.error
import urllib.request
from urllib.parse import urlparse

SECONDS = 5
"""How long W&B may take to accept a connection, and again to answer; asked once per process."""


SYNC = "Later: wandb sync RUN/wandb/offline-run-* (every run of a sweep: wandb sync SWEEP/*/wandb/offline-run-*)"
"""What uploads the runs that went on offline."""


def wandb_mode() -> str:
    """Where W&B's runs go: what WANDB_MODE says, else online for users whose login W&B accepts, offline for others."""
    mode = os.environ.get("WANDB_MODE")
    if mode and mode != "online":
        return "offline" if mode == "dryrun" else mode
    url = _url()
    key = key_of_wandb()
    if not key:
        return mode or "offline"  # W&B itself says what is wrong with an explicit "online" without a login
    return "offline" if _told(url, key) else "online"


def key_of_wandb() -> str | None:
    """The key of this machine's user, None if there is none."""
    return os.environ.get("WANDB_API_KEY") or _key_in_netrc(urlparse(_url()).hostname or "")


def _url() -> str:
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


@functools.cache
def _told(url: str, key: str) -> bool:
    """Whether something is wrong; it is printed the first time."""
    problem = refusal(url, key)
    if problem:
        print(
            f"W&B: {problem}; the run goes on offline. {SYNC}",
            file=sys.stderr,
            flush=True,
        )
    return problem is not None


def refusal(url: str, key: str) -> str | None:
    """Why W&B at `url` does not take this key, in words; None if it does."""
    request = urllib.request.Request(
        f"{url.rstrip('/')}/graphql",
        data=json.dumps({"query": "query { viewer { id } }"}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode(),
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            known = (json.load(answer).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return f"{url} refuses the API key ({error.code}): log in anew with `wandb login --relogin`"
        return f"{url} answers {error.code} {error.reason}"
    except (OSError, ValueError, AttributeError) as error:
        return f"{url} cannot be reached ({getattr(error, 'reason', error)})"
    return None if known else f"{url} does not know the API key: log in anew with `wandb login --relogin`"


def _key_in_netrc(host: str) -> str | None:
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
        return entry[2] if entry else None
    return None
