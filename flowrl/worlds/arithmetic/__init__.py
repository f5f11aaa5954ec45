"""The arithmetic world: sums, differences and products of a few digits, and a tiny language model that half knows them.

`problems` says what is asked and what is held out, `corpus` writes the documents of pretraining, `model` makes the
tokenizer and the model, `build` pretrains and measures what lies in `assets/`.
"""
