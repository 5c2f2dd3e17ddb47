"""The labels of ImageNet-1K's flat validation images, from the devkit of ILSVRC2012."""

import io
import tarfile
from pathlib import Path, PurePosixPath

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from data.datasets.image_files import some
from infvit.errors import UsageError

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


def labels_of(names: list[str], root: Path, classes: list[str]) -> list[int]:
    """Returns the labels of images by their names, ILSVRC2012_val_00000001.JPEG and so on; the devkit is in `root`."""
    known = {name: label for label, name in enumerate(classes)}
    synsets = enumerate(validation_synsets(root / DEVKIT), 1)
    labels = {f"ILSVRC2012_val_{number:08}.JPEG": known[synset] for number, synset in synsets}
    strange = [name for name in names if name not in labels]
    if strange:
        raise UsageError(
            f"the devkit in {root} knows {len(labels):,} validation images, and not {some(strange)}: expected "
            "ILSVRC2012_val_00000001.JPEG and so on"
        )
    return [labels[name] for name in names]


def validation_synsets(archive: Path) -> list[str]:
    """Returns the synsets of validation images 1, 2, ...; UsageError if there is no devkit, or a damaged one.

    The ground truth consists of numbers (ILSVRC2012_ID), whose order is not that of the sorted synsets; meta.mat maps
    them to synsets.
    """
    if not archive.is_file():
        raise UsageError(
            f"the validation images in {archive.parent} are flat, and their labels are missing: put {DEVKIT} of "
            "image-net.org beside them"
        )
    try:
        with tarfile.open(archive, "r:gz") as tar:
            files = {PurePosixPath(member.name).name: tar.extractfile(member) for member in tar if member.isfile()}
            truth, meta = (file.read() for file in (files[TRUTH], files[META]) if file)
        table = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = table[table["num_children"] == 0]
        names = {int(number): str(name) for number, name in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)}
        return [names[int(number)] for number in truth.split()]
    except (tarfile.TarError, EOFError, OSError, MatReadError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"the devkit {archive} is damaged or another archive ({error}): fetch it again") from error
