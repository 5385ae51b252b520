"""The run file of the small run that end-to-end tests share."""

from pathlib import Path

from fedlora.common.run_file import load_run, to_toml


def write_run_file(folder: Path, model: Path, digits: Path, *overrides: str) -> Path:
    """Return a new run file in `folder`: three clients, two rounds, dropout on, with overrides."""
    base, path = folder / "base.toml", folder / "run.toml"
    base.write_text(
        f"""
        [run]
        name = "tiny"
        [model]
        name = "{model}"
        [task]
        image_size = 16
        [data]
        path = "{digits}"
        [lora]
        rank = 4
        dropout = 0.1
        [train]
        steps = 3
        batch_size = 8
        learning_rate = 0.01
        device = "cpu"
        [federation]
        rounds = 2
        [evaluation]
        round_examples = 12
        client_examples = 4
        """
    )
    path.write_text(to_toml(load_run(base, overrides)))
    return path
