"""Who hangs is told from beats; the harness of real processes that are stopped is `tests.chaos.worker`."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from callbacks.effort import Effort, effort
from callbacks.hangs import END, Beat, Judge, Point, Watched
from callbacks.whereabouts import Whereabouts

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0


def beat(rank, batch, point=Point.STARTS, **more):
    """Of a step that is watched; its number is set when it is heard."""
    known = {"watched": Watched.STEP, "patience": PATIENCE, "position": (1, batch, point, 0)}
    words = {"place": f"data/of_rank{rank}.py:1", "doing": f"in batch {batch}"}
    return Beat(rank, 100 + rank, "host", "1", **known | words | more)


def resting(rank, effort=0.0, **more):
    """Of what may take as long as it likes while it works."""
    return beat(rank, 6, watched=Watched.EFFORT, position=(1, 6, Point.STARTS, 1), effort=Effort(effort), **more)


def stalled(*beats, seconds=95.0):
    """What is told when the beats go on for so long with nothing new in them."""
    judge = Judge()
    assert judge.stall(beats, 0.0) is None
    return judge.stall(beats, seconds)


def test_the_rank_furthest_behind_hangs_and_not_those_that_wait_for_it():
    told = stalled(beat(0, 7), beat(1, 6, Point.FETCHES), beat(2, 7))
    assert told.processes == (("host", 101, "1"),)
    for words in ("rank 1 (process 101 on host) hangs for 95 s in batch 6", "data/of_rank1.py:1", "resume=auto"):
        assert words in told.line


def test_of_ranks_in_the_same_place_the_one_that_does_not_wait_hangs():
    told = stalled(beat(0, 7, waits=True), beat(1, 7), beat(2, 7, waits=True))
    assert told.line.startswith("rank 1 ")
    undecided = stalled(beat(0, 7, waits=True), beat(1, 7, waits=True))
    assert "rank 0 " in undecided.line
    assert "rank 1 " in undecided.line


@pytest.mark.parametrize(
    "beats",
    [
        [beat(0, 6, patience=100.0), beat(1, 7)],  # steps are as long
        [beat(0, 7)],  # a step of one process makes nobody wait
        [resting(0)],
        [beat(0, 7, over=True), beat(1, 7, over=True)],
    ],
)
def test_what_may_take_long_is_no_hang(beats):
    assert stalled(*beats) is None


@pytest.mark.parametrize("other", [beat(1, 7, waits=True), resting(1, waits=True)])
def test_what_may_take_long_is_no_hang_while_it_works(other):
    """Rank 0 writes a checkpoint, and rank 1 waits for it there or in its next step."""
    judge = Judge()
    for second in range(0, 1000, 2):
        assert judge.stall([resting(0, effort=0.05 * second), other], second) is None
    assert judge.stall([resting(0, effort=50.0), other], 1060) is None
    told = judge.stall([resting(0, effort=50.1), other], 1095)
    assert told.line.startswith("rank 0 (process 100 on host) hangs for ")
    assert told.processes == (("host", 100, "1"),)


def judged(*beats, before=(), until, first=0, moved=0.0):
    """When the judge names one, of processes whose work goes on, the seconds before `first` with other beats."""
    judge = Judge()
    for second in range(0, until, 2):
        now = before if second < first else beats
        now = [dataclasses.replace(b, effort=Effort(0.0 if b.waits else second, moved * second)) for b in now]
        if told := judge.stall(now, second):
            return second, told.line.split(" (")[0]
    return None


FIRST = {"watched": Watched.EFFORT, "position": (1, 0, Point.STARTS, 0)}
BEHIND = {"watched": Watched.EFFORT, "position": (1, END, Point.FETCHES, 1)}
START = {"watched": Watched.EFFORT, "position": (0, 0, Point.FETCHES, 0)}


@pytest.mark.parametrize(
    ("here", "ahead"),
    [
        (FIRST, FIRST | {"position": (1, 0, Point.RUNS_BACKWARD, 0)}),
        (FIRST, FIRST | {"waits": True}),  # sharded weights are awaited in the forward pass
        (BEHIND, FIRST | {"position": (2, 0, Point.STARTS, 0)}),
        (START, START | {"waits": True}),
    ],
)
def test_an_endless_loop_is_told_though_it_works_when_another_waits_for_it(here, ahead):
    both = beat(0, 0, **here), beat(1, 0, **here)
    second, named = judged(beat(0, 0, **ahead), beat(1, 0, **here), before=both, first=30, until=1000)
    assert named == "rank 1"
    assert second == pytest.approx(30 + PATIENCE, abs=4)
    reads = {"before": both, "first": 30, "until": 1000, "moved": 0.05}
    assert judged(beat(0, 0, **ahead), beat(1, 0, **here), **reads) is None  # a checkpoint from a slow disk
    if here is not FIRST:  # rank 0 writes and prepares alone
        assert judged(beat(0, 0, **here), beat(1, 0, **ahead), before=both, first=30, until=1000) is None


def test_others_wait_for_a_first_batch_twice_as_long_as_theirs_took():
    """Rank 0 has compiled after 200 s, rank 1 has not."""
    both = beat(0, 0, **FIRST), beat(1, 0, **FIRST)
    ahead = beat(0, 0, **FIRST, waits=True)
    second, named = judged(ahead, both[1], before=both, first=200, until=1000)
    assert named == "rank 1"
    assert second == pytest.approx(200 + 2 * 200, abs=4)


def test_where_code_is_compiled_first_batches_have_ten_minutes():
    at = Whereabouts(PATIENCE)
    at.compiles = True
    at.begin("training")
    assert at.patience == 600
    at.end_of(0, 10)
    assert at.patience == PATIENCE
    at.begin("validation")
    assert at.patience == 600


def test_effort_is_processor_time_and_bytes_moved_by_a_process_and_its_children(tmp_path):
    before = effort()
    works = "import time\nwhile time.process_time() < 1: pass\nopen('/dev/zero', 'rb').read(2**26)\n"
    works += "print(flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", works], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        done = effort() - before
        assert done.worked > 0.9
        assert done.moved > 3.9
        besides = effort(besides=[child.pid]) - before
        assert besides.worked < 0.5
        assert besides.moved < 0.5
        child.kill()
    before = effort()
    (tmp_path / "written").write_bytes(bytes(64 * 2**20))
    assert (effort() - before).moved > 3.9


def test_reading_that_hangs_is_told_of_a_single_process_too():
    assert "what reads them hangs" in stalled(beat(0, 7, Point.FETCHES)).line


def test_a_rank_that_has_told_its_error_is_named_and_not_the_one_that_waits_for_it():
    told = stalled(beat(0, 7), beat(1, 6, over=True))
    assert told.line.startswith("rank 1 (process 101 on host) has ended, its error above")


def test_getting_on_ends_a_stall_and_beats_end_silence():
    judge = Judge()
    for second in range(0, 500, 50):
        slow = [beat(0, second), beat(1, second)]
        assert judge.stall(slow, second) is None
        assert judge.silence([dataclasses.replace(b, number=second) for b in slow], second, PATIENCE) is None
    silent = [dataclasses.replace(beat(0, 450), number=451), dataclasses.replace(beat(1, 450), number=450)]
    assert judge.silence(silent, 550, PATIENCE).processes == (("host", 101, "1"),)
    assert judge.silence([dataclasses.replace(b, over=True) for b in silent], 650, PATIENCE) is None


def test_no_error_of_a_reader_that_is_ended_too_is_told_beside_the_one_that_ends_all():
    """torch raises in the main thread that a reader has died, wherever that is."""
    ends = (
        "import os, signal, threading\n"
        "from callbacks.hang_watchdog import Heartbeat\n"
        "def dies(*_): raise RuntimeError('a reader died')\n"
        "heartbeat = Heartbeat(90)\n"
        "heartbeat.ending.set()\n"
        "signal.signal(signal.SIGALRM, dies)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2)\n"
        "threading.Timer(1, os._exit, [2]).start()\n"
        "heartbeat.leave()"
    )
    done = subprocess.run([sys.executable, "-c", ends], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "")


def test_a_stopped_rank_is_named_and_ended_and_the_same_command_goes_on():
    command = [sys.executable, "-m", "tests.chaos", "worker", "--launchers", "lightning", "--faults", "3"]
    command += ["--epochs", "1", "--patience", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all |  | 1 | 1 | 0 |" in done.stdout
