"""The maths of one denoising step and of a walk from noise to image. Imports torch and the standard library only.

Conventions, stated here once and used in every file of this package:

- Interpolation: x_s = (1 - s) x_0 + s eps with eps ~ N(0, I). The noise level `s` falls from 1 (noise) to 0 (data).
- Velocity: v = dx_s / ds = eps - x_0. Hence x_0 = x - s v, eps = x + (1 - s) v and score = -(x + (1 - s) v) / s.
- Step: from `s` to `s_next` <= s, so dt = s_next - s <= 0. A sigma table holds num_steps + 1 levels and ends in 0; step
  k goes from table[k] to table[k + 1].
- A step is a `Gaussian` over the next latent: `mean` [R, ...] and `std`, which already contains sqrt(-dt). Published
  code gives the name `std_dev_t` to three different quantities; here there is one.
- Rows R are dimension 0. Noise levels that differ between rows come as [R, 1, ...], between tokens as [R, T, 1].
- A latent log-density is reduced over the non-row dimensions by `mean` (published clip ranges assume it) or `sum`.
- Everything is computed in float32 or wider; a drawn latent goes through its storage dtype before it is scored.
- Noise and seeds are arguments. Nothing here reads a global generator, a rank or the clock.

Two other kinds of coordinates have one step each, of the same signature:

- Variance exploding (EDM, levels above 1): x_s = x_0 + s eps with v = dx_s / ds = eps, for `transitions.ve_sde`.
- Variance preserving (DDPM models): x_s = a x_0 + s eps, a = sqrt(1 - s^2), where s = sqrt(1 - alphas_cumprod) is the
  amplitude of the noise. v stays eps - x_0, which is no derivative there: x_0 = (x - s v) / (a + s) and
  eps = x_0 + v. `predictions.velocity_from` makes it of what a model predicts, `renoising.vp_ddim` steps along it, with
  noise 0 for the ODE. Levels come as floats where they can: 1 - s^2 is small beside s where it matters.
"""
