import torch


def credit_weights(tree, logp=None):
    views = sorted({tree.segments[i].view for i in tree.leaves})
    w = torch.zeros(len(views), len(tree.rows), len(tree.leaves))
    for b, leaf in enumerate(tree.leaves):
        for r, row in enumerate(tree.rows):
            if row in tree.path(leaf):
                w[views.index(tree.segments[leaf].view), r, b] = 1
    return w / w.sum(-1, keepdim=True).clamp(min=1)


def peers(tree):
    return torch.tensor([tree.segments[i].peers for i in tree.rows])
