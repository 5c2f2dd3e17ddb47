"""Seeds become means and intervals; what must not be compared is marked; nothing disappears."""

from dataclasses import replace

from infvit.compare import Comparison, Estimate, records
from infvit.compare.columns import table
from infvit.compare.notes import problems


def test_seeds_of_one_configuration_are_one_row_and_rows_fall_by_top1_with_those_without_last(make_result):
    given = {"a": 0.2, "b": None, "c": 0.9, "d": 0.0}
    comparison = Comparison.from_results(make_result(model, s, top1) for s in (0, 1) for model, top1 in given.items())
    assert [(row.name, row.finished) for row in comparison.rows] == [("c", 2), ("a", 2), ("d", 2), ("b", 2)]
    assert comparison.rows[0].top1.mean == 0.9


def test_failed_runs_are_counted_and_not_averaged(make_result):
    comparison = Comparison.from_results(
        [
            make_result(seed=0, top1=0.9),
            make_result(seed=1, top1=0.1, status="failed", error="CUDA out of memory"),
            make_result(seed=2, top1=0.1, status="diverged", error="loss became nan"),
            make_result(seed=3, top1=0.1, status="running"),
        ]
    )
    (row,) = comparison.rows
    assert row.troubles == "1 failed, 1 diverged, 1 running"
    assert (row.finished, row.top1.n, row.top1.mean) == (1, 1, 0.9)
    failures = [f"vit seed 1 failed: CUDA out of memory ({row.runs[1].run_dir})"]
    failures.append(f"vit seed 2 diverged: loss became nan ({row.runs[2].run_dir})")
    assert problems(comparison) == failures


def test_a_run_that_failed_before_it_knew_its_data_counts_in_its_row_which_takes_what_any_run_knows(make_result):
    early = make_result(seed=1, status="failed", data_fingerprint="", num_classes=None, parameters=None)
    comparison = Comparison.from_results([early, make_result(seed=0), make_result("infvit", 0)])
    assert {row.name: row.troubles for row in comparison.rows} == {"vit": "1 failed", "infvit": ""}
    row = next(row for row in comparison.rows if row.name == "vit")
    assert row.known("parameters") == 1_310_000
    assert row.config.data_fingerprint
    failed = [
        make_result(seed=s, status="failed", parameters=p, data_fingerprint=f)
        for s, p, f in ((0, None, ""), (1, 7, "a"))
    ]
    (row,) = Comparison.from_results(failed).rows
    assert row.known("parameters") == 7
    assert row.config.data_fingerprint == "a"


def test_a_run_that_failed_before_it_read_its_images_counts_in_the_row_of_its_folder(make_result):
    early = {"status": "failed", "top1": None, "data_fingerprint": "", "num_classes": None}
    runs = [
        make_result(seed=s, top1=t, data_fingerprint=t, data_root=r) for s, t, r in ((0, 0.9, "/a"), (0, 0.8, "/b"))
    ]
    runs = [replace(run, data_fingerprint=run.data_root[1] * 8) for run in runs]
    failed = [make_result(seed=seed, data_root=root, **early) for seed, root in enumerate(("/a", "/b", "/b", "/c"))]
    rows = Comparison.from_results([*runs, *failed]).rows
    assert [(row.name, row.finished, row.troubles) for row in rows] == [
        ("vit (data_fingerprint=aaaaaaaa)", 1, "1 failed"),
        ("vit (data_fingerprint=bbbbbbbb)", 1, "2 failed"),
        ("vit (data.root=/c)", 0, "1 failed"),
    ]


def test_rows_that_differ_in_nothing_but_code_are_not_averaged_and_the_older_one_is_marked(make_result, printed):
    runs = [
        make_result(seed=seed, top1=top1, code=code, started=f"2026-01-0{day}T00:00:00+00:00")
        for seed, top1, code, day in ((0, 0.9, "aaaaaaaa", 1), (1, 0.9, "aaaaaaaa", 1), (0, 0.5, "bbbbbbbb", 2))
    ]
    runs += [make_result("infvit", 0, 0.7, code="cccccccc")]
    comparison = Comparison.from_results(runs)
    rows = {row.name: row for row in comparison.rows}
    old, new = rows["vit (code=aaaaaaaa)"], rows["vit (code=bbbbbbbb)"]
    assert (old.finished, new.finished) == (2, 1)
    assert old.differs == ("older code #aaaaaaaa, not #bbbbbbbb",)
    assert new.comparable
    assert rows["infvit"].comparable
    assert rows["infvit"].paired.baseline == new.name
    assert {record["code"]: record["differs"] for record in records(comparison)}["aaaaaaaa"] == old.differs[0]
    if printed.__name__ != "latex":
        assert old.differs[0] in printed(comparison)


def test_trials_of_a_search_show_their_objective_and_fall_by_it(make_result):
    trials = [
        make_result(top1=None, variant=f"recipe.base_lr={lr}", metrics={"val/top1": lr}) for lr in (0.1, 0.3, 0.2)
    ]
    comparison = Comparison.from_results(trials)
    shown = [column for column in table(comparison).shown("text") if column.heading == "val top-1 %"]
    assert [column.cell(row) for column in shown for row in comparison.rows] == [f"{x}.00 ± –" for x in (30, 20, 10)]
    assert not [c for c in table(Comparison.from_results([make_result()])).shown("text") if c.heading == "val top-1 %"]


SETTINGS = {"model.attention.hops": 1, "model.net.attention.hops": 1, "compile": False, "data.module.augment": None}


def test_runs_of_different_settings_are_rows_that_name_the_setting(make_result):
    """As a file of a user's own may set it."""
    changes = {0.9: {}, 0.8: {"model.attention.hops": 3, "model.net.attention.hops": 3}, 0.7: {"compile": True}}
    runs = [make_result("infvit", top1=top1, settings=SETTINGS | change) for top1, change in changes.items()]
    comparison = Comparison.from_results([*runs, make_result("vit", settings=SETTINGS, top1=0.6)])
    one = "infvit (compile={}, model.attention.hops={})"
    names = [one.format(False, 1), one.format(False, 3), one.format(True, 1), "vit"]
    assert [(row.name, row.finished) for row in comparison.rows] == [(name, 1) for name in names]
    assert all(row.comparable for row in comparison.rows)
    compiled = comparison.rows[2].paired
    assert (compiled.top1.n, compiled.log_speed.n) == (1, 0)


def test_a_run_of_few_batches_does_not_compare_with_whole_ones(make_result):
    few = SETTINGS | {"trainer.limit_train_batches": 0.05}
    runs = [make_result(model, settings=SETTINGS) for model in ("vit", "linear_infvit", "infvit")]
    runs += [make_result(model, settings=few, top1=0.3) for model in ("vit", "performer")]
    rows = {row.name: row for row in Comparison.from_results(runs).rows}
    short = "vit (trainer.limit_train_batches=0.05)"
    assert set(rows) == {short, "vit (trainer.limit_train_batches=unset)", "linear_infvit", "infvit", "performer"}
    assert rows["performer"].differs == rows[short].differs == ("trainer.limit_train_batches 0.05, not unset",)
    assert rows["infvit"].comparable
    assert rows["performer"].paired.baseline == short


def test_of_the_same_seed_twice_only_the_latest_counts(make_result):
    first = make_result(seed=0, top1=0.8, started="2025-01-01T00:00:00", run_dir="first")
    second = make_result(seed=0, top1=0.9, started="2025-01-02T00:00:00", run_dir="second")
    (row,) = Comparison.from_results([second, first]).rows
    assert row.top1 == Estimate(1, 0.9, None)
    assert [run.run_dir for run in row.repeats] == ["first"]
    assert len(row.runs) == 2


def test_differences_are_named_in_words_and_hashes_that_begin_alike_in_full(make_result):
    changes = {
        "a": {"depth": 24},
        "b": {"dim": 384},
        "c": {"recipe": "deit", "recipe_hash": "ab12cd34ef"},
        "d": {"data": "mnist5k", "data_fingerprint": "77"},
        "e": {"image_size": 16, "epochs": 30},
        "f": {"batch_size": 64, "heads": 8, "recipe": "the same by another name"},
    }
    usual = [make_result(model, 0) for model in ("vit", "infvit")]
    comparison = Comparison.from_results(usual + [make_result(name, **change) for name, change in changes.items()])
    differs = {row.name: row.differs for row in comparison.rows}
    assert differs == {
        "vit": (),
        "infvit": (),
        "a": ("depth 24, not 4",),
        "b": ("width 384, not 192",),
        "c": ("recipe deit#ab12cd34, not digits#34cd90ab",),
        "d": ("data mnist5k#77, not digits#9f3ac2d4",),
        "e": ("resolution 16, not 8", "epochs 30, not 12"),
        "f": (),
    }
    assert all(row.comparable == (not row.differs) for row in comparison.rows)
    comparison = Comparison.from_results([make_result("vit"), make_result("infvit", recipe_hash="34cd90abXX")])
    assert comparison.rows[1].differs == ("recipe digits#34cd90abXX, not digits#34cd90ab12ef5678",)


def test_the_reference_is_what_most_finished_rows_share_and_the_first_of_equals(make_result):
    four, deep = make_result("a", depth=4), make_result("b", depth=24)
    for first, second in ((four, deep), (deep, four)):
        comparable = {row.config.depth: row.comparable for row in Comparison.from_results([first, second]).rows}
        assert comparable == {first.depth: True, second.depth: False}
    unfinished = [make_result(model, depth=24, status="failed") for model in "cde"]
    assert [row.comparable for row in Comparison.from_results([four, *unfinished]).rows] == [True, False, False, False]


def test_files_are_found_below_and_read_once(make_result, make_sweep):
    folders = make_sweep([make_result(seed=0), make_result(seed=1)])
    comparison = Comparison.from_dirs([folders[0].parent, folders[0], folders[0] / "result.json"])
    (row,) = comparison.rows
    assert row.finished == 2
    assert sorted(run.run_dir for run in row.runs) == [str(folder) for folder in folders]
