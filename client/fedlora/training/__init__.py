"""Local training: the data, the base model with its LoRA layers, the tasks, the loop. Public.

Nothing is imported here: who only deals out data needs no torch. `trained.load_trained` gives the
model of a finished run, `data` the examples, `trainer.LocalTrainer` the loop.
"""
