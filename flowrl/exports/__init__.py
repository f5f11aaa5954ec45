"""Trained weights in the formats of other tools, checked by using them there.

`writer.py` does what every kind of model needs, `card.py` the text beside the weights, `pipelines.py` diffusers.
"""
