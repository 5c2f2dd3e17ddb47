"""Command lines with mistakes in them, drawn from the options that conf/ has, and what the real commands make of them.

`python -m tests.cli.broken_overrides --count 5000 --seed 1` tries so many and counts what came of them; it prints
each that gave anything but one line and exit code 2, or a dry run that passed.
"""

import argparse
import collections
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from infvit.cli import entrypoint, resolvers
from tests.cli.config_grid import CONF, options
from tests.conftest import SCRIPTS

TRAIN = ("experiment=digits", "logger=csv", "data/loader=torch", "+dry_run=true", "trainer.accelerator=cpu")
"""What each mistake is added to; of what is acceptable a dry run passes."""

SECONDS = 60
SLOW = 128 + signal.SIGKILL
"""Seconds for an accepted command, and the exit code of one that is killed then, such as with a large model."""

MEMORY = 24 << 30
"""Address space for a command, of which torch reserves much."""

Command = tuple[str, ...]


def composed(config: str, *overrides: str):
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, [*overrides])


def leaves(node: object, place: str = "") -> Iterator[str]:
    """The dotted names of all values of a config."""
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from leaves(value, f"{place}.{name}" if place else str(name))
    else:
        yield place


def settings_of(config: str, *overrides: str) -> list[str]:
    """The names of all settings of a composed config but those that make it a dry run."""
    content = OmegaConf.to_container(composed(config, *overrides), resolve=False)
    return sorted(name for name in leaves(content) if name not in ("dry_run", "trainer.accelerator"))


NUMBERS = ["-1", "0", "-0.5", "1.5", "2", "nan", "inf", "-inf", "1e400", "1e-400", "9" * 23, "0x10", "1_000"]
WORDS = ["abc", "true", "false", "???", "null", "''", '""', "'1'", "", " ", "1 2", "'it is'", "\\'", "../../../x"]
LISTS = ["[]", "[1,2]", "[a,b]", "{}", "{a:1}", "[[]]", "[nan]", "[1,2,3,4,5]", "{_target_:int}"]
STRANGE = ["ä" * 20, "x" * 5000, "日本語", "'\u202e\u200b'", "'\x1b[31mred'"]
JUNK = [*NUMBERS, *WORDS, *LISTS, *STRANGE]

INTERPOLATED = (
    "${nothing}",
    "${oc.env:NOPE}",
    "${no_such_resolver:1}",
    "${model.nothing}",
    "${",
    "${.}",
    "${tokens:a,b,c}",
)

GRAMMAR = (
    "seed",
    "=",
    "=1",
    "seed==1",
    "seed=[1",
    "seed=1]",
    "seed={a",
    "seed='1",
    'name="a',
    "seed=a:b:c",
    "se ed=1",
    "seed=1 2,",
    "[seed]=1",
    "sééd=1",
    "seed=\x01",
    "name='a\nb'",
    "name=a/../../b\tc=d",
    "~",
    "+",
    "++",
    "+=1",
    "~=1",
    "@=1",
    "model@x=vit",
    "model@=vit",
    "override model=vit",
    "",
    "💥=1",
    "x" * 3000,
    "seed=f(1)",
    "seed=sort(1,2)",
    "seed=int(x)",
    "seed=range(1)",
)

SWEPT = ("1,2", "range(3)", "choice(1,2)", "interval(0,1)", "glob(*)", "tag(a,1)", "shuffle(1,2)", "a,b,c", ",", "1,")

FORBIDDEN = (
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "infvit.nothing",
    "nothing",
    "infvit.__doc__",
    "a b",
    "",
    "1",
    "data.datasets.image_files.os.system",
)


@st.composite
def misspelt(draw: st.DrawFn, word: str) -> str:
    """The word with a letter left out, doubled, exchanged with its neighbour or in the other case."""
    at = draw(st.integers(0, len(word) - 1))
    kind = draw(st.sampled_from(["out", "twice", "swap", "case", "more"]))
    if kind == "out":
        return word[:at] + word[at + 1 :]
    if kind == "twice":
        return word[: at + 1] + word[at:]
    if kind == "swap":
        return word[:at] + word[at : at + 2][::-1] + word[at + 2 :]
    if kind == "case":
        return word[:at] + word[at].swapcase() + word[at + 1 :]
    return word + draw(st.sampled_from(["s", "_", ".", ".x", "-"]))


def mistakes(config: str, base: Command) -> st.SearchStrategy[tuple[str, str]]:
    """(what kind of mistake, override), from the settings and groups that there are."""
    places = st.sampled_from(settings_of(config, *base))
    targets = st.sampled_from([name for name in settings_of(config, *base) if name.endswith("_target_")])
    choices = options()
    group = st.sampled_from(sorted(choices))
    option = group.flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(choices[name])))
    junk = st.sampled_from(JUNK) | st.integers().map(str) | st.floats().map(str) | st.text(max_size=20).map(printable)

    def kind(name: str, overrides: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, str]]:
        return st.tuples(st.just(name), overrides)

    return st.one_of(
        kind("value", st.tuples(places, junk).map("=".join)),
        kind("value", st.tuples(places, junk).map("=".join)),
        kind("value", st.tuples(places, junk).map("=".join)),
        kind("setting misspelt", st.tuples(places.flatmap(misspelt), junk).map("=".join)),
        kind("option misspelt", option.flatmap(lambda o: misspelt(o[1]).map(lambda word: f"{o[0]}={word}"))),
        kind("group misspelt", option.flatmap(lambda o: misspelt(o[0]).map(lambda word: f"{word}={o[1]}"))),
        kind("interpolation", st.tuples(places, st.sampled_from(INTERPOLATED)).map("=".join)),
        kind("interpolation", places.map(lambda name: f"{name}=${{{name}}}")),
        kind("prefix", st.tuples(st.sampled_from(["+", "~", "++", "~~", "+~", "-"]), places, junk).map(prefixed)),
        kind("prefix", st.tuples(st.sampled_from(["+", "~", "++"]), option.map("=".join)).map("".join)),
        kind("sweep without -m", st.tuples(places, st.sampled_from(SWEPT)).map("=".join)),
        kind("forbidden target", st.tuples(targets, st.sampled_from(FORBIDDEN)).map("=".join)),
        kind("grammar", st.sampled_from(GRAMMAR)),
    )


def prefixed(parts: tuple[str, str, str]) -> str:
    prefix, name, value = parts
    return f"{prefix}{name}" if prefix.startswith("~") else f"{prefix}{name}={value}"


def printable(text: str) -> str:
    """Without what no argument of a process can hold."""
    return text.encode("utf-8", "ignore").decode().replace("\x00", "")


def commands(config: str, base: Command) -> st.SearchStrategy[tuple[str, Command]]:
    """(kinds of mistakes, all overrides): one mistake, or seldom several."""
    one = mistakes(config, base)
    several = st.lists(one, min_size=2, max_size=3)
    made = st.one_of(one.map(lambda m: [m]), one.map(lambda m: [m]), one.map(lambda m: [m]), several)
    return made.map(lambda all_: (" and ".join(kind for kind, _ in all_), (*base, *(word for _, word in all_))))


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code (128 + the signal's number if one ended it), stderr, files."""

    code: int
    err: str
    out: str
    left: tuple[str, ...]

    @property
    def wrong(self) -> str | None:
        """What is wrong with it; None for one line and exit code 2, or for a dry run that passed."""
        lines = [line for line in self.err.split("\n") if line.strip()]
        if self.code in (0, SLOW):
            return None
        if self.code != 2:
            return f"exit code {self.code}"
        if len(lines) != 1 or not lines[0].startswith("error: "):
            return f"{len(lines)} lines"
        if not all(c.isprintable() for c in lines[0]):
            return "control characters"
        return f"a line of {len(lines[0])} characters" if len(lines[0]) > LONGEST else None


LONGEST = 1000


def outcome(script: str, overrides: Command, folder: Path, seconds: float = SECONDS) -> Outcome:
    """The command run in a process forked from this one, in `folder`, which is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    logs = folder.with_suffix(".out"), folder.with_suffix(".err")
    process = os.fork()
    if not process:
        _child(script, overrides, folder, *logs)
    until = time.monotonic() + seconds
    pid = status = 0
    while not pid and time.monotonic() < until:
        pid, status = os.waitpid(process, os.WNOHANG)
        time.sleep(0.005)
    if not pid:
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
    code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    left = tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
    out, err = (log.read_text(errors="replace") for log in logs)
    return Outcome(code, err, out, left)


def _child(script: str, overrides: Command, folder: Path, out: Path, err: Path) -> None:
    code = 1
    try:
        os.chdir(folder)
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.argv = [f"{script}.py", *overrides]
        entrypoint.run(SCRIPTS[script])
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def tried(script: str, base: Command, count: int, number: int, look: Callable[[str, Command], None]) -> None:
    """Calls look(kinds, overrides) with so many command lines."""

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(commands(script, base))
    def every(command: tuple[str, Command]) -> None:
        look(*command)

    every()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cli.broken_overrides", description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", default="wrong", help="wrong, accepted, refused")
    wanted = parser.parse_args()
    table: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as name:
        os.environ["INFVIT_CACHE"] = f"{name}/cache"

        def look(kinds: str, overrides: Command) -> None:
            got = outcome("train", overrides, Path(name, "trial"))
            verdict = "wrong" if got.wrong else {0: "accepted", SLOW: "slow"}.get(got.code, "refused")
            table[kinds if " and " not in kinds else "several"][verdict] += 1
            if verdict in wanted.show.split(","):
                print(f"{verdict}: {list(overrides[len(TRAIN) :])!r:.300}", flush=True)
                if verdict != "accepted":
                    print(
                        f"    {got.wrong or ''} {got.err.strip()[-700:] if got.wrong else got.err.strip()}", flush=True
                    )

        tried("train", TRAIN, wanted.count, wanted.seed, look)
    for kind, counts in sorted(table.items()):
        print(f"{kind:<20} {dict(counts)}")
    return int(any(counts["wrong"] for counts in table.values()))


if __name__ == "__main__":
    sys.exit(main())
