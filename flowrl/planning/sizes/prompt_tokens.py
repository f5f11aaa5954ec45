"""How many tokens a text has where no tokenizer is at hand, roughly."""

WORDS = 1.5  # tokens a word
MARKS = 24  # tokens that a chat template puts around a prompt or a question
ASSUMED = 77  # tokens of a prompt, if there is none to be counted
