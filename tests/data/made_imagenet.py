"""ImageNet-1K in small: its 1,000 synsets and file names, with real JPEGs, in every form in which it is published.

Each image has the colour of its label, so that the pixels show a wrong label.
"""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from data.datasets.imagenet_v2 import FOLDERS, synsets

ONE_STEP = [
    *("size=tiny", "size.dim=16", "size.depth=1", "model=vit", "recipe=digits", "recipe.epochs=1"),
    *("recipe.warmup_epochs=0", "data/loader=torch", "data.module.workers=0", "logger=csv"),
    "+trainer.limit_train_batches=1",
]
"""Overrides of a run of one small step."""

V2 = FOLDERS["matched-frequency"]

GREY, CMYK, ROTATED, PNG = 111, 11, 12, synsets().index("n02105855")
PNG_NAME = "n02105855_2933.JPEG"
"""The one image of ImageNet that is a PNG, in its class; the grey image has a class whose colour is grey."""


def colour(label: int) -> tuple[int, int, int]:
    """A colour from which `label_of` recovers the label, also after JPEG."""
    return tuple(25 * (label // place % 10) + 12 for place in (100, 10, 1))


def label_of(image: Image.Image) -> int:
    return int("".join(str(int(channel) // 25) for channel in np.asarray(image.convert("RGB"))[2, 2]))


def picture(label: int, number: int) -> Image.Image:
    """An image of odd size and of one colour, except for a grey corner, which shows its orientation."""
    image = Image.new("RGB", (17 + (7 * label + number) % 23, 16 + (5 * label + 3 * number) % 19), colour(label))
    image.paste((90, 90, 90), (image.width - 5, image.height - 5, image.width, image.height))
    return image


def encoded(label: int, number: int, odd: bool) -> bytes:
    image, file = picture(label, number), io.BytesIO()
    if odd and label == PNG:
        image.save(file, "PNG")
        return file.getvalue()
    exif = Image.Exif()
    if odd and label == ROTATED:
        exif[ExifTags.Base.Orientation] = 6
    mode = {GREY: "L", CMYK: "CMYK"}.get(label, "RGB") if odd else "RGB"
    image.convert(mode).save(file, "JPEG", quality=95, subsampling=0 if mode == "RGB" else -1, exif=exif)
    return file.getvalue()


def make_tree(root: Path) -> None:
    """train/<synset> with 2 images each, the odd ones among them, and val/<synset> with 1."""
    numbers = np.random.default_rng(0).permutation(1000)
    for label, synset in enumerate(synsets()):
        for split in ("train", "val"):
            (root / split / synset).mkdir(parents=True)
        names = (PNG_NAME if label == PNG else f"{synset}_18.JPEG", f"{synset}_10026.JPEG")
        for number, name in enumerate(names):
            (root / "train" / synset / name).write_bytes(encoded(label, number, odd=number == 0))
        name = f"ILSVRC2012_val_{numbers[label] + 1:08}.JPEG"
        (root / "val" / synset / name).write_bytes(encoded(label, 2, odd=False))


def train_tar(tree: Path, path: Path) -> None:
    """A tar of one tar per synset, in another order than the synsets' (as that of image-net.org may be)."""
    with tarfile.open(path, "w") as outer:
        for folder in sorted((tree / "train").iterdir(), key=lambda folder: folder.name[::-1]):
            inside = io.BytesIO()
            with tarfile.open(fileobj=inside, mode="w") as inner:
                for file in folder.iterdir():
                    add(inner, file.name, file.read_bytes())
            add(outer, f"{folder.name}.tar", inside.getvalue())


def val_tar(tree: Path, path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for file in sorted((tree / "val").rglob("*.JPEG"), key=lambda file: file.name):
            add(tar, file.name, file.read_bytes())


def devkit(tree: Path, path: Path) -> None:
    """The ground truth as ILSVRC's numbers, in their own order, and meta.mat, which names them and 860 others."""
    from scipy.io import savemat

    own = np.random.default_rng(1).permutation(1000)  # own[label] + 1 is the ILSVRC2012_ID
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    meta = np.zeros(1860, kind)
    for label, synset in enumerate(synsets()):
        meta[own[label]] = (float(own[label] + 1), synset, "leaf", 0.0)
    for number in range(1000, 1860):
        meta[number] = (float(number + 1), f"n9{number:07}", "inner", 2.0)
    table = io.BytesIO()
    savemat(table, {"synsets": meta})
    labels = {name: label for label, name in enumerate(synsets())}
    files = sorted((tree / "val").rglob("*.JPEG"), key=lambda file: file.name)
    truth = "".join(f"{own[labels[file.parent.name]] + 1}\n" for file in files)
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", table.getvalue())
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())


def parquet(tree: Path, folder: Path) -> None:
    """Two files a split, the rows shuffled, the synset after each name, as Hugging Face serves it."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    folder.mkdir()
    labels = {name: label for label, name in enumerate(synsets())}
    for split, name in (("train", "train"), ("val", "validation")):
        files = sorted((tree / split).rglob("*.JPEG"))
        files = [files[i] for i in np.random.default_rng(2).permutation(len(files))]
        for part in range(2):
            images = [
                {"bytes": file.read_bytes(), "path": f"{file.stem}_{file.parent.name}.JPEG"} for file in files[part::2]
            ]
            table = pa.table({"image": images, "label": [labels[file.parent.name] for file in files[part::2]]})
            pq.write_table(table, folder / f"{name}-{part:05}-of-00002.parquet", row_group_size=100)


def imagenet_v2(numbers: Path, synset_root: Path) -> None:
    """ImageNet-V2 with numbers and with synsets as folders, an image in each."""
    for label, name in enumerate(synsets()):
        for folder in (numbers / V2 / str(label), synset_root / V2 / name):
            folder.mkdir(parents=True)
            (folder / "0.jpeg").write_bytes(encoded(label, 5, odd=False))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
