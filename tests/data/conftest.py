import numpy as np
import pytest
from PIL import Image

from data.torch_loader import TorchReader
from tests.data.made_imagenet import imagenet_v2, make_tree


@pytest.fixture
def tree(tmp_path):
    """Real JPEGs and PNGs of odd sizes, grey ones too: 3 classes, 6 for training and 4 for validation in each."""
    rng = np.random.default_rng(0)
    root = tmp_path / "tree"
    for split, count in (("train", 6), ("val", 4)):
        for label, name in enumerate(("Birch", "apple", "cedar")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (20 + 3 * i, 31, 3), dtype=np.uint8) // 4 + 60 * label
                image = Image.fromarray(pixels if i % 3 else pixels[..., 0])
                image.save(folder / (f"{i}.JPEG" if i % 2 else f"{i}.png"))
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def ffcv():
    pytest.importorskip("ffcv")
    from data.beton.loader import FFCVReader

    return FFCVReader()


@pytest.fixture(params=["torch", "ffcv"])
def reader(request):
    return TorchReader() if request.param == "torch" else request.getfixturevalue("ffcv")


@pytest.fixture(scope="session")
def v2(tmp_path_factory):
    """ImageNet-V2, matched-frequency: the roots of its two forms."""
    roots = {form: tmp_path_factory.mktemp(form) for form in ("numbers", "synsets")}
    imagenet_v2(*roots.values())
    return roots


@pytest.fixture(scope="session")
def imagenet_tree(tmp_path_factory):
    """ImageNet-1K in small: train/ and val/ with its 1,000 synsets, 2 and 1 real JPEGs in each."""
    root = tmp_path_factory.mktemp("imagenet")
    make_tree(root)
    return root
