"""Vision-language models that are asked for a verdict, local or behind a server."""
