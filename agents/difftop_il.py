"""DiffTOP for imitation: a conditional VAE whose decoder optimizes a chunk of actions under a learned cost.

    h = encoder(o_{t-T_s+1}, ..., o_t),   z_0 = (h, w)
    a(h, w) = argmin over a in [-1, 1]^{H x A}, from a^0, of sum_t gamma^t 1/2 |phi(z_t, a_t)|^2,   z_{t+1} = d(z_t, a_t)

by a few iterations of Levenberg-Marquardt, one problem per sample; training differentiates them. a^0 is zero, or what a frozen
base policy would do.

Source: DiffTORI, arXiv:2402.05421, section 4.3 and appendix D, and its code's `difftori.py`.
Differs: problems are per sample (there, one residual couples the batch), rows instead of 1000 - f, dynamics as in the paper (the
code has none), padding is excluded, all planned actions can be executed, plans are inside the box. docs/difftop_il.md has more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.policies.base_policy import BASE_CHECKPOINT, BASE_DRAWS, BASES, DRAWS, BaseConfig, BasePolicy
from agents.policies.chunks import ChunkActor, PolicyConfig, WindowPolicy, WindowPredictor
from agents.policies.cvae_model import CostModel, ILModelConfig, Posterior, kl_to_standard
from agents.policies.noise import Noise
from agents.policies.training import TrainingConfig, WindowShape, schedule_option
from agents.registry import make_policy
from difftop.data.demonstrations import Demonstrations
from difftop.data.windows import Episodes, WindowBatch
from difftop.losses import full_precision
from difftop.nn.mlp import mlp
from difftop.options import option
from difftop.planning import LMPlanner
from difftop.planning.config import LMConfig, objective_option
from difftop.types import EnvSpec, PlanResult, SolveStatus

_MEMORY = {"none": 1, "bc": 1, "diffusion": 2, "rnn_gmm": 10}  # observations that a base's prediction depends on, usually


@dataclass(frozen=True)
class ILPlannerConfig(LMConfig):
    """The planner's options, with defaults for a learned cost."""

    objective: str = objective_option("cost")
    iterations: int = option(2, "Levenberg-Marquardt iterations per plan", low=1)
    damping: float = option(0.1, "lambda: larger means smaller steps, nearer the start", above=0.0)
    proximal: float = option(1.0, "weight rho of 1/2 rho |a - start|^2: what the cost has to outweigh", low=0.0)
    scale: float = option(1.0, "what the cost's rows are divided by; the cost learns its own size", above=0.0)


@dataclass(frozen=True)
class ILTraining(TrainingConfig):
    """Defaults found on a synthetic task and on MetaWorld; see docs/difftop_il.md."""

    learning_rate: float = option(3e-3, "of Adam", above=0)
    schedule: str = schedule_option("cosine")
    clip: float = option(10.0, "largest norm of the gradient; 0 for none", low=0)


@dataclass(frozen=True)
class DiffTOPILConfig(PolicyConfig):
    """Options of `agent=difftop_il`."""

    name: str = option("difftop_il", "CVAE with a planner as decoder", choices=("difftop_il",))
    training: ILTraining = option(ILTraining, "optimizer")
    window: int = option(1, "T_s: observations that a plan depends on", low=1)
    horizon: int = option(4, "H: actions of a plan", low=1)
    model: ILModelConfig = option(ILModelConfig, "networks")
    planner: ILPlannerConfig = option(ILPlannerConfig, "the decoder; see docs/planner.md")
    weight: float = option(1.0, "of the squared error, a mean over actions", above=0)
    beta: float = option(0.03, "of the KL divergence, a sum over the latent's entries", low=0)
    samples: int = option(1, "latents drawn for each plan while acting, the cheapest is kept; 0: the prior's mean", low=0)
    base: str = option("none", "policy to start plans from; none: from zeros", choices=("none", *BASES))
    base_checkpoint: str = option("", BASE_CHECKPOINT)
    base_window: int = option(
        0, "observations that the base's memory begins with, in training; 0: 1, rnn_gmm 10, diffusion 2", low=0
    )
    base_draws: int = option(DRAWS, BASE_DRAWS, low=0)

    @property
    def windows(self) -> WindowShape:
        """See `PolicyConfig`."""
        window = max(self.window, self.base_window or _MEMORY[self.base])
        return WindowShape(window, self.horizon, window - 1, self.horizon - 1)


class DiffTOPIL(WindowPolicy):
    """See the module.

        loss = weight mean_{b, t} |a_bt - a*_bt|^2 / A + beta mean_b KL(q(w | h, a*) || N(0, I))

    over steps that are no padding, of samples whose plan did not fail.
    """

    config: DiffTOPILConfig

    def __init__(self, config: DiffTOPILConfig, spec: EnvSpec, *, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, spec)
            sizes = config.model
            features = self.observer.out * config.window
            self.encoder = mlp([features, *sizes.encoder_dims, sizes.state_dim])
            self.posterior = None
            if sizes.latent_dim:
                hidden = list(sizes.posterior_dims)
                self.posterior = Posterior(sizes.state_dim, config.horizon, spec.action_dim, hidden, sizes.latent_dim)
            self.cost_model = CostModel(sizes, config.horizon, spec.action_dim, config.planner.objective)
        self.planner = LMPlanner(config.planner, self.cost_model.step_dim)
        self.base = None
        if config.base != "none":
            self.base = BasePolicy(BaseConfig(config.base, config.base_checkpoint), spec, make_policy)

    def fit_normalizer_(self, demonstrations: Demonstrations) -> None:
        """Takes the normalization, and the base from its run."""
        super().fit_normalizer_(demonstrations)
        if self.base is not None:
            self.base.read_()

    def prepare_(self, demonstrations: Episodes, generator: torch.Generator) -> None:
        """See `agents.policies.training.ImitationAgent.prepare_`: what the base does."""
        if self.base is not None:
            self.base.foresee_(demonstrations, self.windows.window, self.config.base_draws, generator)

    def loss(self, batch: WindowBatch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the class, and its parts; docs/difftop_il.md explains the tags."""
        config, noise = self.config, self.batch_noise(len(batch.actions), generator)
        target, known = (x[:, self.windows.window - 1 :] for x in (batch.actions, batch.mask))
        begin = (~batch.mask[:, : self.windows.window]).sum(1)  # what is before is padding, which a base's memory never saw
        if self.base is not None:
            begin = self.base.drawn_begin(begin, self.windows.window, noise)
        state, starts = self.encoded(batch.obs, noise), self.starts(batch.obs, noise, begin, batch.rows)
        w, kl = self._posterior_sample(state, target, known, noise)
        plan = self.plan(state, w, starts, differentiable=torch.is_grad_enabled())
        actions, solved = plan.actions, plan.status != int(SolveStatus.FAILED)
        counted = known & solved[:, None]
        error = _masked_mean((actions - target).square().mean(-1), counted)
        loss = config.weight * error + config.beta * kl.mean()
        moved = (actions.detach() - starts).square().mean((1, 2)).sqrt().mean()
        metrics = {
            "error": error,
            "kl": kl.mean(),
            "plan/failure_rate": 1 - solved.double().mean(),
            "plan/step_from_start": moved,
        }
        if not self.training:
            acted = self.acted(state, starts, noise).actions
            metrics["acting_error"] = _masked_mean((acted - target).square().mean(-1), known)
        return loss, {"loss": loss.detach()} | {tag: value.detach() for tag, value in metrics.items()}

    def encoded(self, obs: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """h `[K, S]` of windows by key `[K, T, *shape]`, of which the last T_s observations count."""
        seen = {key: x[:, -self.config.window :] for key, x in obs.items()}
        state: Tensor = self.encoder(self.observer(seen, noise).flatten(1))
        return full_precision(state)

    def starts(self, obs: Mapping[str, Tensor], noise: Noise, begin: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Where plans start: zeros, or the base's chunks for the last step of windows; `[K, H, A]`; see `BasePolicy.plans`."""
        if self.base is None:
            first = next(iter(obs.values()))
            dtype = next(self.parameters()).dtype
            return torch.zeros(len(first), self.config.horizon, self.spec.action_dim, dtype=dtype, device=first.device)
        return self.fitted(self.base.latest(obs, noise, begin, rows))

    def fitted(self, chunks: Tensor) -> Tensor:
        """The base's chunks `[K, T_p, A]` as starts `[K, H, A]` in the box: cut, or their last action repeated."""
        missing = self.config.horizon - chunks.shape[1]
        last = chunks[:, -1:].expand(-1, max(missing, 0), -1)
        fitted = torch.cat([chunks[:, : self.config.horizon], last], 1).clamp(-1, 1)
        return fitted.to(next(self.parameters()).dtype)

    def plan(self, state: Tensor, w: Tensor | None, starts: Tensor, *, differentiable: bool = False) -> PlanResult:
        """Optimizes chunks.

        Args:
            state: h `[K, S]`.
            w: `[K, W]`, None where there is no latent.
            starts: `[K, H, A]`.
            differentiable: whether gradient reaches h, w and the cost model.
        Returns:
            actions `[K, H, A]`, and value: minus their learned cost.
        """
        model = self.cost_model
        start = starts.reshape(len(starts), model.steps, model.step_dim)
        found = self.planner.plan(model.latent_model(), _latent(state, w), start, differentiable=differentiable)
        return PlanResult(found.actions.view_as(starts), found.value, found.status, found.iterations)

    def acted(self, state: Tensor, starts: Tensor, noise: Noise) -> PlanResult:
        """What is done while acting: the plan of w = 0, or the cheapest of those of `samples` latents.

        Args:
            state: h `[K, S]`.
            starts: `[K, H, A]`.
            noise: K rows.
        """
        size, count = self.config.model.latent_dim, self.config.samples
        if not size or not count:
            return self.plan(state, state.new_zeros(len(state), size) if size else None, starts)
        w = noise.normal(count, size).to(state.dtype).flatten(0, 1)
        found = self.plan(state.repeat_interleave(count, 0), w, starts.repeat_interleave(count, 0))
        usable = torch.isfinite(found.value) & (found.status != int(SolveStatus.FAILED))
        cheapest = torch.where(usable, found.value, -torch.inf).view(-1, count).argmax(1)
        rows = torch.arange(len(state), device=cheapest.device) * count + cheapest
        return PlanResult(found.actions[rows], found.value[rows], found.status[rows], found.iterations[rows])

    def chunk(self, obs: Mapping[str, Tensor], noise: Noise) -> Tensor:
        """See `WindowPolicy`; the memory of a base begins with the window."""
        return self.acted(self.encoded(obs, noise), self.starts(obs, noise), noise).actions

    def actor(self, num_envs: int, *, seed: int, head: str | None = None) -> ChunkActor:
        """See `agents.policies.training.Policy`."""
        return _PlanningActor(self, num_envs, seed, self.deployed_head(self.config.head if head is None else head))

    def predictor(self, num_envs: int, seed: int) -> WindowPredictor:
        """See `ChunkPolicy`."""
        return _Planning(self, num_envs, seed)

    def _posterior_sample(self, state: Tensor, target: Tensor, known: Tensor, noise: Noise) -> tuple[Tensor | None, Tensor]:
        """w from q(w | h, a*), and the KL divergence `[B]`; None and zeros without a latent."""
        if self.posterior is None:
            return None, state.new_zeros(len(state))
        mean, log_variance = self.posterior(state, target, known)
        eps = noise.normal(mean.shape[1]).to(mean.dtype)
        return mean + (log_variance / 2).exp() * eps, kl_to_standard(mean, log_variance)


class _Planning(WindowPredictor):
    """Plans from zeros, or from what a base would do, with the base's own memory of the episode; counts failures."""

    def __init__(self, policy: DiffTOPIL, num_envs: int, seed: int) -> None:
        super().__init__(policy, num_envs, seed)
        self.planning = policy
        self.base = None if policy.base is None else policy.base.predictor(num_envs, seed + 1)
        self.counters = torch.zeros(2, dtype=torch.float64)  # plans, failures

    def predict(self, obs: Mapping[str, Tensor], t0: Tensor, due: Tensor) -> Tensor:
        """See `agents.policies.chunks.Predictor`."""
        starts = None if self.base is None else self.base.predict(obs, t0, due)
        wanted = super().predict(obs, t0, torch.zeros_like(due))  # only remembers
        rows, policy = due.nonzero()[:, 0], self.planning
        if len(rows):
            noise, seen = self.noise.of(rows), {key: x[rows] for key, x in self.seen.items()}
            start = policy.starts(seen, noise) if starts is None else policy.fitted(starts[rows])
            plan = policy.acted(policy.encoded(seen, noise), start, noise)
            wanted[rows] = plan.actions.to(wanted)
            failed = (plan.status == int(SolveStatus.FAILED)).sum()
            self.counters += torch.stack([torch.full_like(failed, len(rows)), failed]).cpu()
        return wanted

    def begin(self, index: int, seed: int) -> None:
        """See `agents.policies.chunks.Predictor`."""
        super().begin(index, seed)
        if self.base is not None:
            self.base.begin(index, seed)

    def state_dict(self) -> dict[str, Any]:
        """All memory."""
        state = super().state_dict() | {"counters": self.counters.clone()}
        return state if self.base is None else state | {"base": self.base.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`, bit for bit."""
        super().load_state_dict(state)
        self.counters = state["counters"].clone()
        if self.base is not None:
            self.base.load_state_dict(state["base"])


class _PlanningActor(ChunkActor):
    """Tells how many of the plans failed, too."""

    def metrics(self) -> dict[str, float]:
        """The head's, and `plan/failure_rate` since the last call."""
        assert isinstance(self.predictor, _Planning)
        plans, failures = self.predictor.counters.tolist()
        self.predictor.counters.zero_()
        return super().metrics() | {"plan/failure_rate": failures / max(plans, 1)}


def _latent(state: Tensor, w: Tensor | None) -> Tensor:
    return state if w is None else torch.cat([state, w], -1)


def _masked_mean(values: Tensor, known: Tensor) -> Tensor:
    """Mean of `values` where `known`; 0 where nothing is."""
    return torch.where(known, values, 0.0).sum() / known.sum().clamp_min(1)
