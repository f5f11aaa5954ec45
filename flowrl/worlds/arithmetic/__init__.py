"""The arithmetic world: sums, differences and products of a few digits, and a tiny language model that half knows them.

`problems` defines what is asked and what is held out, `corpus` writes the pretraining documents, `model` makes the
tokenizer and the model, `build` pretrains and measures what is stored in `assets/`.
"""
