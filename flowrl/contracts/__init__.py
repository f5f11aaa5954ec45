"""The few types that every part of flowrl meets in: prompts, samples, rollouts, and the protocols around them.

Shapes, here and everywhere: R rows (trainable chains), K decisions a row (denoising steps or tokens), B finished
samples, P prompts, G samples a prompt. A decision is a number to the core: a log-probability, a mask, an advantage.

samples.py     what is drawn, what it is drawn for, and what scores it
looks.py       policies, and what they show of their rollouts
objectives.py  losses, and what they are given
exploration.py  samples drawn in more than one go
conversations.py  turns of a model, tools, environments
ranks.py       processes that train together
"""

from flowrl.contracts.conversations import (
    ENDS,
    Call,
    Context,
    Conversation,
    Environment,
    Episode,
    ModelsFault,
    Picture,
    Said,
    Schema,
    Shown,
    Unavailable,
)
from flowrl.contracts.exploration import Drawing, Explore, Explored, Score
from flowrl.contracts.looks import (
    Coming,
    Field,
    Finished,
    LogProbs,
    Looks,
    PlanT,
    Policy,
    Progress,
    RewardOf,
    Show,
    States,
    Valued,
    View,
    Visit,
    Weights,
)
from flowrl.contracts.objectives import Batch, Need, Objective, Together
from flowrl.contracts.ranks import ALONE, OneRank, Ranks
from flowrl.contracts.samples import Credit, Message, NoTruth, Prompt, Reward, Rollout, Samples, Steps, StepScores

__all__ = [
    "ALONE",
    "ENDS",
    "Batch",
    "Call",
    "Coming",
    "Context",
    "Conversation",
    "Credit",
    "Drawing",
    "Environment",
    "Episode",
    "Explore",
    "Explored",
    "Field",
    "Finished",
    "LogProbs",
    "Looks",
    "Need",
    "NoTruth",
    "Objective",
    "OneRank",
    "PlanT",
    "Policy",
    "Progress",
    "Message",
    "ModelsFault",
    "Picture",
    "Prompt",
    "Ranks",
    "Reward",
    "RewardOf",
    "Rollout",
    "Said",
    "Samples",
    "Schema",
    "Score",
    "Show",
    "Shown",
    "States",
    "StepScores",
    "Steps",
    "Valued",
    "Together",
    "Unavailable",
    "View",
    "Visit",
    "Weights",
]
