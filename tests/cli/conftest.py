"""The command in this process, and folders of clients that the real PEFT wrote for a tiny real model."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from fedlora.cli.main import main

TOKENS, HIDDEN, INNER, LABELS = 11, 12, 8, 3
INPUTS = torch.arange(4 * 5).view(4, 5) % TOKENS


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(HIDDEN, INNER)
        self.value = nn.Linear(INNER, HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.tanh(self.value(torch.tanh(self.query(hidden))))


class TinyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, HIDDEN)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(HIDDEN, LABELS)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs).mean(1)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


@dataclass(frozen=True)
class Done:
    """How the command ended, and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Tiny:
    """A tiny model, and what PEFT makes of it."""

    folder: Path

    def base(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return TinyModel().eval()

    def save_clients(self, *clients: dict[str, Any]) -> list[Path]:
        """Return one folder for each client, whose LoraConfig has these options; A, B and all else are random."""
        folders = [self.folder / f"client-{place}" for place in range(len(clients))]
        for seed, (folder, options) in enumerate(zip(folders, clients, strict=True)):
            config = LoraConfig(r=4, lora_alpha=6, target_modules=["query", "value"])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = get_peft_model(self.base(), replace(config, **options))
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.data += 0.3 * torch.randn_like(parameter)
            model.save_pretrained(str(folder))
        return folders

    def load(self, folder: Path) -> PeftModel:
        return PeftModel.from_pretrained(self.base(), str(folder)).eval()

    @torch.no_grad()
    def logits(self, model: nn.Module) -> Tensor:
        logits: Tensor = model(INPUTS)
        return logits


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


@pytest.fixture
def fedlora(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Return a function that runs the command with its arguments, in this process."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedlora", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        code = ended.value.code
        return Done(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run
