"""What a run would take, found out from the model's config.json alone: no weights are read and nothing is computed.

The model is built without memory, with its LoRA layers, and goes through a step of training in which every tensor has
a shape, a type and a lifetime, but no numbers. What is alive at the same time is counted.
"""
