"""Names for values that have no static type of their own, so that a hint still says what is meant.

diffusers builds its pipelines, schedulers and outputs at run time, and transformers chooses classes by a folder's
config: what the code relies on is their duck type. JSON has a type, but none through which a record can be read without
casts.
"""

from typing import Any

Pipeline = Any  # a diffusers pipeline of whatever class
Scheduler = Any  # a diffusers scheduler of whatever class
PipelineOutput = Any  # what a pipeline's call returns: an output class, a tuple or a list
LanguageModel = Any  # a causal language model of transformers
Tokenizer = Any  # its tokenizer
Processor = Any  # a processor of transformers: texts and pictures in, tensors out
Network = Any  # a module whose methods depend on its class
Config = Any  # the config of a model or scheduler: attributes that depend on its class
Nest = Any  # tensors and other values in tuples, lists, dicts and output classes, as a module takes and returns them
JSON = Any  # a value that was read from JSON or YAML
