"""A Hugging Face `Trainer` of a user's own as a client's training, or a subclass such as TRL's `SFTTrainer`.

Data, collator, arguments, callbacks and the loop are the script's. The run dictates the base model and its weights, the
LoRA layers, the adapter that a round starts from, how many steps it has, and what becomes of the optimiser's moments.
"""
