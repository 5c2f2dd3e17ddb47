"""`python eval.py eval=gallery` and `eval=figure` on the command line."""

import re

import pytest
import skimage.data
from PIL import Image

pytestmark = pytest.mark.slow

QUICK = ["experiment=digits", "data/loader=torch", "logger=csv", "recipe.epochs=1", "recipe.warmup_epochs=0"]
QUICK += ["+trainer.limit_train_batches=2", "size.depth=2"]


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_pages_and_figures_of_checkpoints_and_photographs(cli, photographs):
    done = cli("train", "-m", "~hydra.callbacks.comparison", *QUICK, "model=linear_infvit,vit", "seed=0").ok()
    linear, vit = (run / "checkpoints" / "last.ckpt" for run in done.runs())

    done = cli("eval", "eval=gallery", f"ckpt=[{linear},{vit}]", "images=3", "methods=[attention,rollout]").ok()
    (page,) = done.folder.glob("runs/eval/gallery/*/gallery.html")
    assert str(page) in done.out
    text = page.read_text()
    assert "<h1>What linear_infvit and vit look at</h1>" in text
    assert len(re.findall('class="frame map"', text)) == 3 * (1 + 2)  # Linear-InfSA has no rollout

    done = cli("eval", "eval=figure", f"ckpt=[{vit},{vit}]", f"image={photographs}", "images=2", "methods=[attention]")
    assert done.code == 0, done.err
    (folder,) = done.folder.glob("runs/eval/figure/*")
    assert done.out.split() == [str(folder / f"figure.{kind}") for kind in ("pdf", "png")]
    done = cli("eval", "eval=gallery", f"ckpt=[{vit},{vit}]", f"image={photographs}", "images=2", "methods=[attention]")
    assert done.code == 0, done.err
    text = max(done.folder.glob("runs/eval/gallery/*/gallery.html")).read_text()
    assert "What vit#1 and vit#2 look at" in text
    assert "astronaut.jpg" in text
    assert "chelsea.jpg" in text
    assert "coffee.jpg" not in text

    for arguments, line in {
        ("methods=[weights]",): "methods has weights, which no model here offers: vit offers attention",
        (f"image={photographs / 'none'}",): "is neither a file nor a folder with images",
        ("images=0",): "give a checkpoint and at least one image",
    }.items():
        done = cli("eval", "eval=gallery", f"ckpt={vit}", *arguments)
        assert line in done.error()
        assert len(done.err.splitlines()) == 1
