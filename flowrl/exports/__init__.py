"""Trained weights in the formats of other tools, verified by loading them there.

`writer.py` does what every kind of model needs, `card.py` writes the model card, `pipelines.py` exports diffusers
pipelines, `language.py` language models.
"""
