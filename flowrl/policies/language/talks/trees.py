"""Trees of turns: conversations that share their first turns, and what was shown behind these; and search in them."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from flowrl.contracts import Drawing, Explored, Rollout, Samples
from flowrl.policies.language.drawing.search import Node, deepsearch
from flowrl.policies.language.drawing.trees import ScoreAll
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.proving import telling
from flowrl.policies.language.talks.conversations import Conversations
from flowrl.policies.language.talks.state import Talk, completed, named_turns
from flowrl.policies.noise import Key, copy_numbers


def tree_of_turns(
    policy: LanguagePolicy, drawing: Drawing, score: object, *, trees: int = 2, expand: int = 2, rounds: int = 1
) -> Explored:
    """`trees` trees of 1 + expand * rounds conversations each: Tree-GRPO (arXiv:2509.21240, section 3.2).

    A node is a turn with what was shown behind it. Each tree begins as one conversation; in every round `expand` of its
    nodes, none of them the last of a conversation, are drawn at random and gone on from to the end. A tree whose
    conversations have one turn each, or failed, begins anew. A child's environment is brought to where its parent's
    stood by the same turns. Nodes and choices are functions of seed, prompt and what was chosen before.
    """
    speaks, own = _begun(policy, drawing)
    keys = [_numbered(key) for key in own]
    first = speaks.started(policy, drawing.prompts, [[next(of) for _ in range(trees)] for of in keys], drawing.plan)
    speaks.converse(policy, first, drawing.plan, drawing.progress)
    talks = [first[i * trees : (i + 1) * trees] for i in range(len(own))]
    number = [0] * len(own)
    for i, of in enumerate(talks):
        for tree, talk in enumerate(of, 1):
            talk.row.tree = tree
            number[i] = named_turns(talk, 0, number[i])
    for turn in range(rounds):
        grown: list[tuple[int, Talk, int]] = []
        for i, of in enumerate(talks):
            known = list(of)
            for tree in range(1, trees + 1):
                chance = random.Random(own[i].number("tree", "expand", turn, tree - 1))
                mine = [(talk, at) for talk in known if talk.row.tree == tree for at in _nodes(talk)]
                for _ in range(expand):
                    if mine:
                        talk, at = chance.choice(mine)
                        made = speaks.forked(talk, at, next(keys[i]))
                    else:
                        (made,), at = speaks.started(policy, [drawing.prompts[i]], [[next(keys[i])]], drawing.plan), 0
                    made.row.tree = tree
                    of.append(made)
                    grown.append((i, made, at))
        speaks.converse(policy, [talk for _, talk, _ in grown], drawing.plan, drawing.progress)
        for i, talk, at in grown:
            number[i] = named_turns(talk, at, number[i])
    flat = [talk for of in talks for talk in of]
    rollout = completed(policy, flat, torch.arange(len(own)).repeat_interleave(len(talks[0])), drawing.plan)
    return Explored(rollout, None, {"tree/computed": _computed(talks)})


def search_of_turns(policy: LanguagePolicy, drawing: Drawing, score: ScoreAll, **options: Any) -> Explored:
    """Conversations that a search finds: `deepsearch` with nodes that are a turn and what was shown behind it."""
    return deepsearch(policy, drawing, score, growth=Turns(policy, drawing), **options)


class Turns:
    """Nodes of a search that are turns; see `search.Growth`.

    A child's environment is brought to where its parent's stood by the same turns; one that fails is a leaf of which
    nothing is known.
    """

    def __init__(self, policy: LanguagePolicy, drawing: Drawing):
        self.policy, self.drawing = policy, drawing
        self.speaks, self._own = _begun(policy, drawing)
        self._keys, self._number = [_numbered(key) for key in self._own], [0] * len(self._own)
        self.depth = self.speaks.turns
        roots = self.speaks.started(policy, drawing.prompts, [[key] for key in self._own], drawing.plan)
        self._roots = [Node(talk.row, talk=talk) for talk in roots]

    def root(self, i: int) -> Node:
        """See `Growth`."""
        return self._roots[i]

    def expand(self, parents: Sequence[tuple[int, Node]]) -> list[Node]:
        """See `Growth`."""
        made = []
        for i, node in parents:
            assert node.talk is not None
            talk = self.speaks.forked(node.talk, len(node.talk.said), next(self._keys[i]))
            made.append(Node(talk.row, node.depth + 1, node, talk=talk))
        talks = [node.talk for node in made if node.talk is not None]
        self.speaks.turn(self.policy, talks, self.drawing.plan, self.drawing.progress)
        self.speaks.outcomes([talk for talk in talks if talk.end is not None])
        for (i, parent), node in zip(parents, made, strict=True):
            self._number[i] += 1
            begin = len(parent.row.ids)
            node.row.node[begin:] = [self._number[i]] * (len(node.row.ids) - begin)
        return made

    def ended(self, node: Node) -> bool:
        """See `Growth`."""
        return node.talk is not None and node.talk.end is not None

    def chance(self, i: int, *what: int | str) -> random.Random:
        """See `Growth`."""
        return random.Random(self._own[i].number("tree", *what))

    def samples(self, leaves: Sequence[Node], group: torch.Tensor) -> Samples:
        """See `Growth`."""
        talks = [node.talk for node in leaves if node.talk is not None]
        return completed(self.policy, talks, group, self.drawing.plan).samples

    def completed(self, found: Sequence[Sequence[Node]]) -> Rollout:
        """See `Growth`."""
        talks = [node.talk for own in found for node in own if node.talk is not None]
        group = torch.arange(len(found)).repeat_interleave(self.drawing.group)
        return completed(self.policy, talks, group, self.drawing.plan)


def _begun(policy: LanguagePolicy, drawing: Drawing) -> tuple[Conversations, list[Key]]:
    """How the policy talks, and what names the noise of each prompt's tree."""
    policy.prepare(telling(drawing.prompts), drawing.plan)
    if policy.conversations is None:
        raise ValueError("a tree of turns needs an environment that ends them")
    copy = copy_numbers(prompt.id for prompt in drawing.prompts)
    keys = [Key(drawing.seed, p.id, drawing.first, number) for p, number in zip(drawing.prompts, copy, strict=True)]
    return policy.conversations, keys


def _numbered(key: Key) -> Iterator[Key]:
    index = key.index
    while True:
        yield Key(key.seed, key.prompt, index, key.copy)
        index += 1


def _nodes(talk: Talk) -> Sequence[int]:
    """Behind how many turns another conversation may begin."""
    return range(1, len(talk.spans)) if talk.failure is None else ()


def _computed(talks: Sequence[Sequence[Talk]]) -> float:
    """The share of all tokens that had to be computed; the others are shared."""
    once = {(i, talk.row.node[at], at) for i, of in enumerate(talks) for talk in of for at in range(len(talk.row.ids))}
    return len(once) / sum(len(talk.row.ids) for of in talks for talk in of)
