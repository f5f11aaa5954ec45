def solver_step(name, x, x0, s, s_next, previous=None):
    v = (x - x0) / s
    return x + v * (s_next - s)
