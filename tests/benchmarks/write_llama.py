"""Write a Llama with random weights: python write_llama.py FOLDER ANSWER.json

8 layers, 256 wide, 8 heads of which 4 hold keys, a vocabulary of 8,192: 10 million parameters in float32.
"""

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main(folder: Path, answer: Path) -> None:
    """Save the model, and write its number of parameters."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=256,
            intermediate_size=688,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
        )
    )
    model.save_pretrained(folder)
    answer.write_text(str(model.num_parameters()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
