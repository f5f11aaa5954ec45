"""Pictures, videos and sounds of a language model's prompts.

opening.py     files as processors take them; views.py: pictures that are changed first
processing.py  where media stand in messages, and what a processor makes of them
inputs.py      how they go into a model beside the ids; positions.py: positions and types of tokens
features.py    features of media, computed once where what makes them is frozen
"""
