"""Search in documents of one's own, by BM25 of the package bm25s: no network, and the same answers in every run."""

import re
from typing import Any

from flowrl.contracts import Context, ModelsFault, Shown
from flowrl.environments.tools.parts.documents import ndcg, passages, read_documents
from flowrl.environments.tools.parts.packages import require
from flowrl.environments.tools.parts.pictures import resized
from flowrl.media.pictures import as_image

LONGEST = 1000  # characters of a query that are read
STATE = "search"


class search:
    """Search in a file or folder of documents, for passages or for pictures of pages (VRAG-RL, arXiv:2505.22019)."""

    def __init__(
        self,
        *,
        documents: str,
        top: int = 3,
        words: int = 100,
        characters: int = 3000,
        pictures: bool = False,
        pixels: int | None = 1003520,
        title: str | None = None,
        text: str | None = None,
        picture: str | None = None,
        unseen: bool = False,
        wanted: str | None = None,
        k1: float = 1.5,
        b: float = 0.75,
    ):
        """Reads the documents and makes their index. Raises Unavailable where bm25s or the documents are missing.

        documents: a .jsonl or .parquet file, or a folder of .txt and .md files. top: passages of an answer, at most;
        words: of a passage; characters: of an answer. pictures: whether the answer is the pictures of the pages that
        were found, each of at most `pixels` (null: any number), in place of their text. title, text, picture: what the
        file calls these columns, where it is not title, text and image. unseen: whether a conversation finds each title
        once (VRAG-RL). wanted: the column of a prompt that has the
        titles of the documents that answer it, from which the outcome `ndcg` is worked out. k1, b: BM25's own.
        """
        limits = {"top": top, "words": words, "characters": characters}
        if low := next((name for name, value in limits.items() if value < 1), None):
            raise ValueError(f"{low}={limits[low]}; accepted: a number from 1")
        self.engine: Any = require("the tool search", "bm25s", "search")
        named = {name: v for name, v in {"title": title, "text": text, "picture": picture}.items() if v is not None}
        read = read_documents(documents, named)
        if pictures and (bare := next((one.title for one in read if one.picture is None), None)) is not None:
            raise ValueError(f"pictures=true, but {bare!r} of {documents!r} has no picture; set pictures=false")
        self.found = passages(read, words)
        self.top, self.characters, self.pictures, self.pixels = top, characters, pictures, pixels
        self.wanted, self.unseen = wanted, unseen
        self.index = self.engine.BM25(k1=k1, b=b)
        self.index.index(self._tokens([f"{one.title}\n{one.text}" for one in self.found]), show_progress=False)

    def __call__(self, query: str, context: Context) -> Shown:
        """Search the documents for what fits some words.

        Args:
            query: The words to search for.
        """
        if not re.search(r"\w\w", query):
            raise ModelsFault(f"the query {query[:40]!r} has no word; accepted: words to search for")
        found: dict[str, None] = context.state.setdefault(STATE, {})
        number = self.top * 4 if self.pictures else self.top  # pages have several passages
        number = len(self.found) if self.unseen and found else min(number, len(self.found))
        tokens = self._tokens([query[:LONGEST]])
        numbers, scores = self.index.retrieve(tokens, k=number, n_threads=1, show_progress=False)
        hits = [self.found[i] for i, score in zip(numbers[0], scores[0], strict=True) if score > 0]
        hits = [hit for hit in hits if not (self.unseen and hit.title in found)]
        hits = hits if self.pictures else hits[: self.top]
        shown = self._pages(hits) if self.pictures else Shown(self._texts(hits))
        found |= dict.fromkeys(list(dict.fromkeys(hit.title for hit in hits))[: self.top])
        wanted = None if self.wanted is None else context.prompt.meta.get(self.wanted)
        if wanted is not None:
            context.outcome["ndcg"] = ndcg(list(found), [wanted] if isinstance(wanted, str) else list(wanted))
        return shown if hits else Shown("Nothing was found.")

    def _texts(self, hits: list[Any]) -> str:
        answer = "\n\n".join(f"({i}) {hit.title}\n{hit.text}" for i, hit in enumerate(hits, 1))
        return answer if len(answer) <= self.characters else answer[: self.characters].rstrip() + " ..."

    def _pages(self, hits: list[Any]) -> Shown:
        pages = dict.fromkeys((hit.picture, hit.title) for hit in hits)
        chosen = list(pages)[: self.top]
        shown = tuple(resized(as_image(picture), 1.0, self.pixels) for picture, _ in chosen)
        return Shown("\n".join(f"({i}) {title}" for i, (_, title) in enumerate(chosen, 1)), shown)

    def _tokens(self, texts: list[str]) -> Any:
        return self.engine.tokenize(texts, stopwords="en", show_progress=False)
