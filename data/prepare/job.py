"""One prepared split: its .beton file, the description of it, and the originals of evaluation images."""

import hashlib
import json
import shutil
import warnings
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.beton.encoding import BetonSettings, encode_all
from data.beton.files import FORMAT, describe_labels
from data.beton.shards import shards_of
from data.beton.writer import progress_bar, write_shards
from data.datasets.source import Split
from data.prepare.originals import Published
from infvit.errors import UsageError
from infvit.run.files import atomic_write, create_once


@dataclass(frozen=True)
class Job:
    """The preparation of one split into the folder `out`; `name` is that of the data set in conf/data."""

    name: str
    split: Split
    images: Published
    classes: list[str]
    out: Path
    settings: BetonSettings
    shard: int
    skip_bad: bool

    @property
    def path(self) -> Path:
        return self.out / f"{self.name}-{self.split}.beton"

    @property
    def originals(self) -> Path:
        """The file of the evaluation images as they were published."""
        return self.path.with_suffix(".zip")

    def is_done(self) -> bool:
        """Returns whether the file exists; UsageError if it has other images or settings."""
        if not self.path.exists():
            return False
        description = self.path.with_suffix(".json")
        about = json.loads(description.read_text()) if description.exists() else {}
        expected = {"listing": self.images.listing(), "settings": asdict(self.settings)}
        other = [name for name, value in expected.items() if about.get(name) != value]
        if other:
            what = "other images" if "listing" in other else f"its images with other settings, {about['settings']}"
            raise UsageError(f"{self.path} exists and holds {what}: remove it, or choose another --out")
        return True

    def bytes_to_write(self) -> float:
        """Returns the size of what is still to be written, estimated from a sample of the images."""
        pieces = encode_all(self.images, self.settings, self.images.sample(64))
        kept = self.split == "val"  # then the originals are written too
        sizes = [len(one.content) + kept * one.read for piece in pieces for one in piece if not one.problem]
        part = self.path.with_suffix(".beton.part")
        written = part.stat().st_size if part.exists() else 0
        return max(len(self.images) * sum(sizes) / max(len(sizes), 1) - written, 0)

    def run(self) -> None:
        """Writes the files that are missing.

        Raises:
            UsageError: an image that cannot be read or decoded, a full disk, a killed process.
        """
        if not self.path.exists():
            self._write()
        for path in (self.path, self.originals):
            path.with_name(path.name + ".lock").unlink(missing_ok=True)
        shutil.rmtree(shards_of(self.path.with_suffix(".beton.part")), ignore_errors=True)

    def _write(self) -> None:
        with create_once(self.path, keep_part=True) as part:
            if part is None:
                return  # another process has written it meanwhile
            identity = json.dumps([self.images.fingerprint(), asdict(self.settings), FORMAT])
            print(f"writing {self.path}", flush=True)
            rows = write_shards(self.images, part, self.settings, identity, self.split, self.shard, self.skip_bad)
            bad = rows["sample"][rows["bad"]].tolist()
            if self.split == "val":
                self._keep_originals(set(bad))
            atomic_write(self.path.with_suffix(".json"), json.dumps(self._about(rows, bad), indent=2) + "\n")
        if bad:
            print(f"  left out {len(bad):,} that cannot be decoded, named in {self.path.with_suffix('.json').name}:")
            print("\n".join(f"    {self.images.title(index)}" for index in bad))

    def _keep_originals(self, bad: set[int]) -> None:
        """Stores the evaluation images as they were published, as <class>/<name>, for the exact pipeline."""
        images = self.images
        with create_once(self.originals) as part:
            if part is None:
                return
            progress = progress_bar(f"{self.split} originals", len(images))
            with zipfile.ZipFile(part, "w") as kept, progress, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Duplicate name")  # members are read by their place
                for piece in images.pieces():
                    for index in piece:
                        if index not in bad:
                            name = f"{self.classes[images.labels[index]]}/{images.names[index]}"
                            kept.writestr(zipfile.ZipInfo(name), images.read(index))
                    progress.update(len(piece))

    def _about(self, rows: np.ndarray, bad: list[int]) -> dict:
        good = rows[~rows["bad"]]
        content, labels = hashlib.sha256(), self.images.labels[good["sample"]]
        for digest, label in zip(good["digest"], labels.tolist(), strict=True):
            content.update(f"{digest.tobytes().hex()} {label}\n".encode())  # as in data.datasets.image_files
        about = {"fingerprint": content.hexdigest(), "classes": self.classes, **describe_labels(labels)}
        about |= {"settings": asdict(self.settings), "format": FORMAT, "listing": self.images.listing()}
        return about | {"source": self.images.kind, "left_out": {i: self.images.title(i) for i in bad}}
