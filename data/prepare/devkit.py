"""The labels of ImageNet-1K's flat validation images, from the devkit of ILSVRC2012."""

import io
import re
import tarfile
from pathlib import Path, PurePosixPath

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from data.datasets.image_files import some
from infvit.errors import UsageError

FOLDER = "ILSVRC2012_devkit_t12"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"


def validation_synsets(root: Path) -> list[str]:
    """Returns the synsets of validation images 1, 2, ...

    The ground truth consists of numbers (ILSVRC2012_ID), whose order is not that of the sorted synsets; meta.mat maps
    them to synsets.

    Args:
        root: the folder of the devkit, which is a folder or the published archive.

    Raises:
        UsageError: no devkit, or a damaged one.
    """
    truth, meta = _read(root)
    try:
        table = loadmat(io.BytesIO(meta), squeeze_me=True, struct_as_record=True)["synsets"]
        leaves = table[table["num_children"] == 0]
        names = {int(number): str(name) for number, name in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
        return [names[int(number)] for number in truth.split()]
    except (MatReadError, KeyError, ValueError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"the devkit in {root} is damaged ({reason}): fetch it again") from error


def labels_of(names: list[str], root: Path, classes: list[str]) -> list[int]:
    """Returns the labels of images by their names, ILSVRC2012_val_00000001.JPEG and so on."""
    synsets, known = validation_synsets(root), {name: label for label, name in enumerate(classes)}
    numbers = [re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name) for name in names]
    strange = [name for name, number in zip(names, numbers, strict=True) if not number]
    strange += [n[0] for n in numbers if n and not 1 <= int(n[1]) <= len(synsets)]
    if strange:
        raise UsageError(
            f"the devkit in {root} knows {len(synsets):,} validation images, and not {some(strange)}: expected "
            "ILSVRC2012_val_00000001.JPEG and so on"
        )
    return [known[synsets[int(number[1]) - 1]] for number in numbers if number]


def _read(root: Path) -> tuple[bytes, bytes]:
    for folder in (root / FOLDER, root):
        if (folder / TRUTH).is_file() and (folder / META).is_file():
            return (folder / TRUTH).read_bytes(), (folder / META).read_bytes()
    archive = root / f"{FOLDER}.tar.gz"
    if not archive.is_file():
        raise UsageError(
            f"the validation images in {root} are flat, and their labels are missing: put {FOLDER}.tar.gz of "
            "image-net.org beside them"
        )
    content: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name, file = "/".join(PurePosixPath(member.name).parts[-2:]), tar.extractfile(member)
                if name in (TRUTH, META) and file:
                    content[name] = file.read()
        return content[TRUTH], content[META]
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise UsageError(f"{archive} is damaged or another archive ({error}): fetch it again") from error
