"""D4PG: exploring actors, a distributional critic, a deterministic policy; and its baselines.

MetaMimic (https://arxiv.org/abs/1810.05017), appendix C.1, table 1, and figure 8's baselines (D4PG,
D4PGfD, demonstrations as a curriculum); D4PG itself is https://arxiv.org/abs/1804.08617, algorithm
1, its projection algorithm 1 of https://arxiv.org/abs/1707.06887 (Bellemare et al. 2017).

    python train.py d4pg --task reach
    python train.py d4pg --env gymnasium:Pendulum-v1 --vmin=-1650 --vmax=10 --updates_per_step 1

One learner and any number of actor processes share a replay (replay.py) and a vector of weights.
`Run.round` is one turn of the learner's loop; with --actors 0 it also steps the only actor.

Departures from the papers:
 1. The batches of a round of updates are sampled together and their targets computed in one pass
    (for images on a CPU, batch by batch): the target networks do not change within a round.
    Priorities are therefore up to a round old.
 2. Features are normalised to mean 0 and variance 1, as memory holds them after the warm-up, and
    clipped to ±10.
 3. Each robot has exploration noise of its own, from --sigma_min to --sigma_max, as Ape-X's actors
    each have their ε; D4PG's share one σ.  Until --warmup steps, actions are uniformly random.
 4. Termination by the hand-to-block distance (appendix C.2) is imitation's alone: metamimic.py.
 5. CPUs with bfloat16 matrix units may use them for float32 matrix products (`tune`).
 6. At the end of an episode, items span fewer than N steps, so that no reward is lost.
 7. D4PGfD's demonstrations are ordinary items that are never removed; Vecerik et al. 2017 also
    raise their priority, and add one-step losses.
 8. Atoms reach Vmax, and targets are R + γ^N z, as in Bellemare et al., of Z(o_{t+N}, π) as in
    D4PG; appendix C.1 divides by Vbins, not Vbins - 1, leaves out γ^N, and prints Z(o_t, a_t).
 9. Actors and learner wait for each other to keep --updates_per_step; the papers' run freely.
"""

import copy
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import time
import zlib
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.functional import smooth_l1_loss

import env
import networks
import replay

FLAGS = {  # name: (what it is; values in the presets tiny, classroom, paper)
    "env": ("stack, or gymnasium:ID for any of gymnasium's", "stack", "stack", "stack"),
    "task": ("reach, lift or stack", "reach", "stack", "stack"),
    "obs": ("ground-truth features, or camera images (pixels)", "features", "features", "pixels"),
    "size": ("side of images, in pixels", 32, 64, 128),
    "horizon": ("T: steps of an episode (gymnasium: 0 for its own)", 20, 200, 600),
    "actors": ("actor processes; 0: one process acts and learns in turn", 0, 1, 4),
    "robots": ("robots per actor", 4, 32, 64),
    "steps": ("environment steps in all", 2_000, 1_000_000, 100_000_000),
    "gamma": ("γ: discount factor", 0.95, 0.99, 0.99),
    "nstep": ("N: steps of a return", 3, 5, 5),
    "vmin": ("Vmin: least return on the critic's support", 0.0, 0.0, 0.0),
    "vmax": ("Vmax: greatest return on it; if both are 0, 1 / (1 - γ)", 0.0, 0.0, 100.0),
    "atoms": ("Vbins: atoms of the critic's distribution", 21, 101, 101),
    "network": ("encoder of images: " + ", ".join(networks.ENCODERS), "impala", "impala", "large"),
    "dial": ("encoder's width, relative to the paper's", 0.1, 0.5, 1.0),
    "half": ("convolutions in bfloat16; auto: where faster", "no", "auto", "auto"),
    "hidden": ("width of fully connected layers", 32, 256, 256),
    "batch": ("items in a batch", 16, 128, 64),
    "policy_lr": ("policy's learning rate; paper: 5e-5 to 2e-4", 1e-3, 3e-4, 1e-4),
    "critic_lr": ("critic's learning rate; paper: 5e-5 to 2e-4", 1e-3, 3e-4, 1e-4),
    "lr_end": ("final learning rate, as a fraction of the initial one", 1.0, 1.0, 1.0),
    "target_period": ("updates between copies to the targets", 20, 100, 100),
    "round": ("updates whose batches are sampled together", 5, 10, 10),
    "sigma_min": ("σ: exploration noise of the calmest robot, about", 0.05, 0.05, 0.05),
    "sigma_max": ("σ: exploration noise of the wildest robot, about", 0.4, 0.4, 0.4),
    "capacity": ("items in memory", 1_000, 500_000, 1_000_000),
    "sampling": ("uniform; or prioritised, and so is removal", "uniform", "uniform", "uniform"),
    "warmup": ("steps with random actions before learning", 100, 5_000, 10_000),
    "updates_per_step": ("updates of the networks for each environment step", 0.5, 0.1, 0.1),
    "demos": ("folder of demonstrations, for the next two", "demos", "demos", "demos"),
    "fd": ("D4PGfD: how many demonstrations to put into memory", 0, 0, 0),
    "curriculum": ("start within so many first steps of a demonstration (paper: 300)", 0, 0, 0),
    "seed": ("random seed", 0, 0, 0),
    "device": ("device of the learner: cpu or cuda", "cpu", "cpu", "cuda"),
    "threads": ("threads of the learner on a cpu", 1, 1, 1),
    "log_every": ("steps between rows of metrics.csv", 200, 5_000, 50_000),
    "eval_every": ("steps between evaluations", 1_000, 50_000, 1_000_000),
    "eval_episodes": ("episodes of an evaluation", 4, 32, 64),
}

CHOICES = {  # MILI's, too
    "task": tuple(env.REWARDS),
    "obs": ("features", "pixels"),
    "network": tuple(networks.ENCODERS),
    "sampling": tuple(replay.SAMPLING),
    "half": ("auto", "yes", "no"),
    "device": ("cpu", "cuda"),
    "method": ("mili", "meta", "bc", "oracle", "random"),
    "augment": ("yes", "no"),
}


# --------------------------------------------------------------------------------------------
# Learning
# --------------------------------------------------------------------------------------------


def project(p, R, discount, z):
    """Φ: projects the distribution p of R + γ^N z onto z (Bellemare et al., algorithm 1).

    p [B, atoms], R [B], discount [B], z [atoms]; mass between two atoms goes to both, the nearer
    getting more.
    """
    last, vmin, vmax = len(z) - 1, z[0], z[-1]
    Tz = R[:, None] + discount[:, None] * z  # T z_j = R + γ^N z_j  [B, atoms]
    b = Tz.sub_(vmin).mul_(last / (vmax - vmin))  # b_j = (T z_j - Vmin) / Δz
    b.clamp_(0, last)  # T z_j clipped to [Vmin, Vmax]
    lower = b.long().clamp_(0, last - 1)  # l = ⌊b_j⌋, below the last, so that u = l + 1 exists
    upward = p * b.sub_(lower)  # p_j (b_j - l)
    m = torch.zeros_like(p).scatter_add_(1, lower, p - upward)  # m_l += p_j (u - b_j)
    return m.scatter_add_(1, lower.add_(1), upward)  # m_u += p_j (b_j - l)


def make_networks(config, shape, actions, told=0):
    """Encoder, policy and critic, for features [F] or images [side, side, 3 k].

    If `told`, also a linear head that predicts so many features (MetaMimic's --tell).
    """
    torch.manual_seed(config.seed)
    if len(shape) == 1:
        encoder, width = networks.Scale(*shape), *shape
    else:
        size = shape[0], config.dial, config.half
        encoder = networks.Encoder(config.network, shape[2] // 3, *size)
        width = encoder.width
    policy = networks.Policy(width, actions, config.hidden)
    critic = networks.Critic(width, actions, config.atoms, config.hidden)
    tell = [torch.nn.Linear(width, told)] if told else []
    return torch.nn.ModuleList([encoder, policy, critic, *tell])


def split(batch, size):
    """A batch {name: [B, ...]} as a list of batches of `size` items."""
    parts = [value.split(size) for value in batch.values()]
    return [dict(zip(batch, part, strict=True)) for part in zip(*parts, strict=True)]


METRICS = ("critic_loss", "q", "td", "gradient")  # of a round of updates


class Agent:
    """Networks π(o | φ) and Z(o, a | θ), their target networks φ' and θ', and their updates."""

    def __init__(self, config, shape, actions, told=0):
        self.config, device = config, config.device
        self.online = make_networks(config, shape, actions, told).to(device)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.flats = [networks.flatten(part) for part in self.online]
        self.target_flats = [networks.flatten(part) for part in self.target]
        rates = [config.critic_lr, config.policy_lr, config.critic_lr, config.critic_lr]
        groups = {}  # by learning rate: Adam updates a group at once
        for flat, rate in zip(self.flats, rates):
            group = {"lr": rate, "full": rate, "params": []}
            groups.setdefault(rate, group)["params"].append(flat)
        self.adam = torch.optim.Adam(groups.values(), fused=True)
        self.z = torch.linspace(config.vmin, config.vmax, config.atoms, device=device)
        self.updates = 0

    @torch.no_grad()
    def targets(self, batch):
        """Φ(Z'): the critic's targets, from N rewards and the target networks.  [B, atoms]"""
        encoder, policy, critic, *_ = self.target
        x = encoder(batch["next_obs"])
        p = critic(x, policy(x)).softmax(1)  # Z(o_{t+N}, π(o_{t+N} | φ') | θ')
        return project(p, batch["reward"][:, 0], batch["discount"][:, 0], self.z)

    def update(self, batch, m, weights):
        """One Adam step on all losses, with targets m; returns metrics, and |TD| as priorities."""
        encoder, policy, critic, *tell = self.online
        x = encoder(batch["obs"])
        log_p = critic(x, batch["action"]).log_softmax(1)
        H = -(m * log_p).sum(1)  # H(Φ(Z'), Z(o_t, a_t | θ))
        critic_loss = (H if weights is None else weights * H).mean()
        told = [self.config.tell * smooth_l1_loss(part(x), batch["told"]) for part in tell]
        x = x.detach()
        critic.requires_grad_(False)  # no gradient of the policy's loss for the critic
        Q = (critic(x, policy(x)).softmax(1) * self.z).sum(1)  # Q(o, π(o | φ)) = Σ p_i z_i
        critic.requires_grad_(True)
        policy_loss = -Q.mean()  # -J(φ) = -E Q
        for flat in self.flats:
            flat.grad.zero_()
        (critic_loss + policy_loss + sum(told)).backward()
        self.adam.step()
        self.updates += 1
        if self.updates % self.config.target_period == 0:
            for target, online in zip(self.target_flats, self.flats):
                target.copy_(online)
        TD = ((m - log_p.detach().exp()) * self.z).sum(1).abs()
        metrics = {"critic_loss": critic_loss.detach(), "q": Q.detach().mean(), "td": TD.mean()}
        return metrics, TD

    def anneal(self, progress):
        """Decay the learning rates linearly with progress, from 0 to 1, of the run."""
        for group in self.adam.param_groups:
            group["lr"] = group["full"] * (1 - (1 - self.config.lr_end) * min(progress, 1))

    def learn(self, memory, count, see=dict):
        """`count` updates (algorithms 2 and 4); returns mean metrics and the last gradient's norm.

        `see` turns a batch from memory into the networks' inputs.
        """
        size = self.config.batch
        slots, weights, batch = memory.sample(count * size)
        batch = see(batch)
        images_on_cpu = batch["obs"].dtype == torch.uint8 and self.config.device == "cpu"
        most = size if images_on_cpu else count * size  # a batch's activations then fit a cache
        m, total, TDs = torch.cat([self.targets(one) for one in split(batch, most)]), 0, []
        for k, one in enumerate(split(batch, size)):
            part = slice(k * size, (k + 1) * size)
            metrics, TD = self.update(one, m[part], None if weights is None else weights[part])
            total = total + torch.stack(list(metrics.values()))
            TDs.append(TD)
        gradient = torch.stack([flat.grad.norm() for flat in self.flats]).norm()
        values = [*(total / count).tolist(), gradient.item()]  # waits for a GPU, once a round
        metrics = dict(zip(METRICS, values, strict=True))
        bad = ", ".join(name for name, value in metrics.items() if not np.isfinite(value))
        if bad:
            raise FloatingPointError(f"{bad}: not finite after {self.updates} updates")
        memory.update(slots, torch.cat(TDs).cpu().numpy())
        return metrics

    def act_weights(self):
        """Encoder and policy, which actors need, as one vector."""
        return torch.cat(self.flats[:2]).cpu().numpy()

    def state(self):
        adam, targets = self.adam.state_dict()["state"], self.target_flats
        return {"flats": self.flats, "targets": targets, "adam": adam, "updates": self.updates}

    def load(self, state):
        for mine, saved in zip(self.flats + self.target_flats, state["flats"] + state["targets"]):
            mine.copy_(saved)
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": state["adam"], "param_groups": groups})
        self.updates = state["updates"]


# --------------------------------------------------------------------------------------------
# Acting
# --------------------------------------------------------------------------------------------


class NStep:
    """A window of n robots' last N steps, with the N-step returns accumulated so far.

    A step returns the items that it completes: N steps long, or shorter at an episode's end.
    """

    def __init__(self, n, N, gamma, rewards=1):
        self.N, self.gamma, self.age, self.at = N, gamma, np.zeros(n, np.int64), 0
        self.kept = None  # {name: [N, n, ...]}: o_t, a_t
        self.R, self.discount = np.zeros((N, n, rewards)), np.ones((N, n, rewards))

    def step(self, begin, reward, discount, last):
        """begin: {name: [n, ...]}, such as o_t and a_t; reward and discount [n, K]; last [n].

        Returns which robots' items are complete [m], and {name: [m, ...]} with reward, discount.
        """
        if self.kept is None:
            self.kept = {k: np.zeros((self.N, *v.shape), v.dtype) for k, v in begin.items()}
        for name, value in begin.items():
            self.kept[name][self.at] = value
        self.R[self.at], self.discount[self.at] = 0, 1
        self.R += self.discount * reward  # r_t + γ r_{t+1} + ... + γ^{N-1} r_{t+N-1}
        self.discount *= self.gamma * discount  # γ^N, or 0 after a termination
        self.age += 1
        since = (self.at - np.arange(self.N)) % self.N  # steps since the row was begun
        mine = since[:, None] < self.age  # rows of a robot's present episode  [N, n]
        row, robot = np.nonzero(mine & ((since[:, None] == self.N - 1) | last))
        self.at = (self.at + 1) % self.N
        self.age = np.where(last, 0, np.minimum(self.age, self.N - 1))
        items = {name: value[row, robot] for name, value in self.kept.items()}
        return robot, items | {"reward": self.R[row, robot], "discount": self.discount[row, robot]}


def make_world(config, n, seed):
    if config.env == "stack":
        return env.Stack(n, seed, config.obs, config.size, task=config.task, horizon=config.horizon)
    return env.Gymnasium(config.env.removeprefix("gymnasium:"), n, seed, config.horizon or None)


def item_fields(world):
    """Names, shapes and types of an item's fields."""
    obs = world.observe()
    shape, dtype = obs.shape[1:], obs.dtype.type
    actions, number = (len(world.low),), ((1,), np.float32)
    return {"obs": (shape, dtype), "action": (actions, np.float32), "next_obs": (shape, dtype),
            "reward": number, "discount": number}  # fmt: skip


def pick(nets, obs):
    """The policy's actions, between -1 and 1.  [n, A] float32"""
    encoder, policy, *_ = nets
    device = next(policy.parameters()).device
    with torch.no_grad():
        return policy(encoder(torch.from_numpy(obs).to(device))).cpu().numpy()


def scaled(action, world):
    """Actions in [-1, 1], mapped to the world's range."""
    return world.low + (action.astype(np.float64) + 1) / 2 * (world.high - world.low)


def demonstrations(config, keys, count=None):
    folder = env.demo_folder(config.demos, "stack", "A", config.horizon)
    return env.load_demos(folder, "stack", keys, count)


def start_states(config):
    """The first --curriculum states of all demonstrations, but no last one: `states` [M, S]."""
    demos = demonstrations(config, ("states",))
    states = [demo["states"][:-1][: config.curriculum] for demo in demos]
    return replay.share(states=np.concatenate(states))


def ladder(config, number, robots, low, high):
    """σ of one actor's robots: those of all actors' rise geometrically from low to high.  [n, 1]"""
    actors = max(config.actors, 1)
    rung = (np.arange(robots * actors) + 0.5) / (robots * actors)
    sigma = low * (high / low) ** rung
    return sigma[number::actors, None].astype(np.float32)


def check_finite(obs, reward):
    for name, value in (("observation", obs), ("reward", reward)):
        if not np.isfinite(value).all():
            robot = np.argwhere(~np.isfinite(value))[0][0]
            raise FloatingPointError(f"the {name} of robot {robot} is not a finite number")


class Actor:
    """n robots in one world, a copy of the policy, and the window of their last N steps."""

    def __init__(self, config, number, items, board, life=0, starts=None):
        """`life` counts this actor's restarts: each has a random seed of its own.

        `starts`: shared states, in one of which each episode begins; None: the world draws one.
        """
        self.config, self.number, self.board, (self.items,) = config, number, board, items
        chance = np.random.SeedSequence((2, config.seed, number, life))
        self.rng = np.random.default_rng(chance)
        self.world = make_world(config, config.robots, int(chance.generate_state(1)[0]))
        self.obs = self.world.observe()
        shape, actions = self.obs.shape[1:], len(self.world.low)
        self.networks = make_networks(config, shape, actions)
        self.flats = [networks.flatten(part) for part in self.networks[:2]]
        self.version = -1
        self.sigma = ladder(config, number, config.robots, config.sigma_min, config.sigma_max)
        self.window = NStep(config.robots, config.nstep, config.gamma)
        self.returns = np.zeros(config.robots)  # of the present episodes, so far
        self.G, self.weight = np.zeros(config.robots), np.ones(config.robots)  # Σ γ^t r_t and γ^t
        self.starts = starts.states if starts else None
        self.begin(np.arange(config.robots))

    def begin(self, ids):
        """New episodes for some robots."""
        if len(ids):
            self.returns[ids], self.G[ids], self.weight[ids] = 0, 0, 1
            self.obs[ids] = self.world.reset(ids)
            if self.starts is not None:
                chosen = self.starts[self.rng.integers(len(self.starts), size=len(ids))]
                self.obs[ids] = self.world.set_state(chosen, ids)

    def ready(self):
        """May this actor step: are all together below the step limit, and slots enough free?"""
        board, k = self.board, self.number
        most = self.config.robots * self.config.nstep  # items, if all episodes end at once
        return board.steps.sum() < board.limit[0] and self.items.room(k) >= most

    def step(self):
        """One step of every robot: act, observe, store.  (MetaMimic's algorithm 3)"""
        config, world, board, k = self.config, self.world, self.board, self.number
        take_weights(self)
        if board.steps.sum() < config.warmup:
            action = self.rng.uniform(-1, 1, (world.n, len(world.low))).astype(np.float32)
        else:
            noise = self.rng.standard_normal((world.n, len(world.low)), np.float32)
            action = (pick(self.networks, self.obs) + self.sigma * noise).clip(-1, 1)
        next_obs, reward, discount, last = world.step(scaled(action, world))
        self.check(next_obs, reward)
        begin = {"obs": self.obs, "action": action}
        robot, items = self.window.step(begin, reward[:, None], discount[:, None], last)
        self.items.write(k, items | {"next_obs": next_obs[robot]})
        self.returns += reward
        for i in np.flatnonzero(last):
            replay.publish_return(board, k, self.returns[i])
        self.obs = next_obs
        self.begin(np.flatnonzero(last))
        board.steps[k] += world.n

    def check(self, obs, reward):
        """Stop at the first NaN, and where rewards since an episode's start leave the support."""
        check_finite(obs, reward)
        self.G += self.weight * reward  # Σ γ^t r_t
        self.weight *= self.config.gamma
        vmin, vmax, low, high = self.config.vmin, self.config.vmax, self.G.min(), self.G.max()
        if low < vmin - 1e-6 or high > vmax + 1e-6:
            worst, flag = (low, "vmin") if low < vmin - 1e-6 else (high, "vmax")
            most = np.ceil(max(2 * abs(worst), np.abs(reward).max() / (1 - self.config.gamma)))
            raise ValueError(
                f"a return of {worst:g} leaves the support, {vmin:g} to {vmax:g}; begin again "
                f"with --{flag}={np.copysign(most, worst):.0f}, or what returns may come to"
            )

    def state(self):
        """What a resumed run needs, if the world's state can be read; else {}."""
        readable = hasattr(self.world, "get_state")
        return actor_state(self, "returns", "G", "weight") if readable else {}

    def load(self, state):
        if state:
            load_actor(self, state, "returns", "G", "weight")


def take_weights(actor):
    """The policies' newest weights, if there are new ones."""
    actor.version, weights = replay.read_weights(actor.board, actor.version)
    if weights is not None:
        networks.unflatten(actor.flats, weights)


def actor_state(actor, *names):
    """What an actor needs to go on bit for bit: generator, world, window, and these of its own."""
    return {"rng": actor.rng.bit_generator.state, "world": actor.world.get_state(),
            "episode": actor.world.physics.episode, "window": vars(actor.window),
            **{name: getattr(actor, name) for name in names}}  # fmt: skip


def load_actor(actor, state, *names):
    actor.rng.bit_generator.state = state["rng"]
    actor.obs = actor.world.set_state(state["world"])
    actor.world.physics.episode[:] = state["episode"]
    vars(actor.window).update(state["window"])
    for name in names:
        setattr(actor, name, state[name])


# --------------------------------------------------------------------------------------------
# An actor's process
# --------------------------------------------------------------------------------------------


def actor_process(make, parent, config, number, items, board, *rest):
    """An actor's process: it runs until told to stop, or until the learner is gone.

    It ignores Ctrl-C, as inherited from `Crew.start`; only the parent handles it.
    """
    tune(threads=1)
    try:
        actor = make(config, number, items, board, *rest)
        while os.getppid() == parent and not board.stop[0]:
            if actor.ready():
                actor.step()
            else:
                time.sleep(0.0005)
    except Exception as error:
        message = f"{type(error).__name__}: {error}".encode()[: board.errors.shape[1]]
        board.errors[number, : len(message)] = np.frombuffer(message, np.uint8)
        os._exit(1)
    os._exit(0)  # at once: what is shared needs no cleaning up


# --------------------------------------------------------------------------------------------
# The learner and its loop
# --------------------------------------------------------------------------------------------


class Learner:
    """An agent, its replay memory, and sums of its metrics since the last row of metrics.csv."""

    def __init__(self, agent, fields, robots, name="", sampling="uniform", see=dict):
        """`robots`: how many of each actor's write to the memory; `see`: as for `Agent.learn`."""
        config = self.config = agent.config
        self.agent, self.name, self.sampling, self.see = agent, name, sampling, see
        ring, actors = max(1024, 4 * robots * config.nstep), max(config.actors, 1)
        self.items, self.memory = replay.Items(fields, config.capacity, actors, ring), None
        self.share, self.credit = 1.0, 0.0  # its share of the rounds; rounds it is owed
        self.scaled, self.sums, self.rounds = False, dict.fromkeys(METRICS, 0.0), 0

    def allocate(self):
        """Allocate the memory, of `items.bytes`."""
        config = self.config
        self.memory = replay.Replay(self.items, self.sampling, config.seed, config.device)

    def fit_scale(self, features, least=0.01):
        """Normalise features to mean 0 and variance 1 over examples."""
        self.scaled = True
        self.agent.online[0].fit(torch.as_tensor(features), least)
        self.agent.target_flats[0].copy_(self.agent.flats[0])

    def learn(self):
        """One round of updates."""
        if not self.scaled and "obs" in self.items.columns:  # observations are features
            live = self.memory.index.live()
            rows = self.items.shared.rows[live[:: -(-len(live) // 10_000)]]
            self.fit_scale(rows[:, self.items.columns["obs"]])
        metrics = self.agent.learn(self.memory, self.config.round, self.see)
        self.sums = {name: self.sums[name] + value for name, value in metrics.items()}
        self.rounds, self.credit = self.rounds + 1, self.credit - 1

    def row(self):
        """Mean metrics since the last row."""
        mean = {name: x / self.rounds if self.rounds else np.nan for name, x in self.sums.items()}
        self.sums, self.rounds = dict.fromkeys(METRICS, 0.0), 0
        return {self.name + name: x for name, x in mean.items()}

    def state(self):
        rest = {name: getattr(self, name) for name in ("credit", "scaled", "sums", "rounds")}
        return {"agent": self.agent.state(), "memory": self.memory.state(), **rest}

    def load(self, state):
        self.memory.load(state["memory"])
        for name in ("credit", "scaled", "sums", "rounds"):
            setattr(self, name, state[name])


class Crew:
    """Actor processes: starts them, restarts those that were killed, stops them."""

    def __init__(self, config, actor, items, board, aids=()):
        """`actor` is the class of actors, `items` what they fill, `aids` what else they need."""
        self.config, self.actor, self.items = config, actor, items
        self.board, self.aids = board, aids
        actors = max(config.actors, 1)
        self.processes, self.lives, self.looked = [None] * actors, [0] * actors, 0.0
        self.deaths, self.steps_then = [0] * actors, [-1] * actors  # deaths in a row without a step

    def start(self, k):
        context = multiprocessing.get_context("spawn")
        args = (self.actor, os.getpid(), self.config, k, self.items, self.board, self.lives[k])
        process = context.Process(target=actor_process, args=args + self.aids, daemon=True)
        ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited, also while it imports
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, ours)
        self.processes[k], self.lives[k] = process, self.lives[k] + 1

    def begin(self):
        """Start all actors; with --actors 0, return the one that acts in this process."""
        if self.config.actors == 0:
            return self.actor(self.config, 0, self.items, self.board, self.lives[0], *self.aids)
        for k in range(self.config.actors):
            self.start(k)
        return None

    def supervise(self):
        """Ten times a second: restart killed actors, raise the error of one that failed."""
        now = time.monotonic()
        if now < self.looked + 0.1:
            return
        self.looked = now
        for k, process in enumerate(self.processes):
            if not process or process.exitcode is None:
                continue
            message = bytes(self.board.errors[k]).rstrip(b"\0").decode(errors="replace")
            if message:
                kind = FloatingPointError if message.startswith("FloatingPoint") else RuntimeError
                raise kind(f"actor {k} gave up: {message}")
            idle = self.board.steps[k] == self.steps_then[k]
            self.deaths[k], self.steps_then[k] = 1 + idle * self.deaths[k], self.board.steps[k]
            if self.deaths[k] > 5:
                raise RuntimeError(f"actor {k} died six times, no step between; is memory short?")
            self.start(k)

    def close(self):
        """Ask the actors to stop; kill those that have not after two seconds."""
        self.board.stop[0] = 1
        deadline = time.monotonic() + 2
        for process in filter(None, self.processes):
            process.join(max(0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


class Run:
    """A training run: learners and actors; `round` is one turn of its loop."""

    def __init__(self, config, learners, actor, play, aids=(), mark=0):
        """`actor`: the actors' class; `aids`: its further arguments; `play`: evaluates policies.

        `mark`: a checksum of the demonstrations, 0 for none.
        """
        self.config, self.learners, self.aids, self.mark = config, learners, aids, mark
        self.play, self.elapsed = play, 0.0  # fraction of --minutes that has passed
        actors, items = max(config.actors, 1), [learner.items for learner in learners]
        self.board = replay.make_board(actors, len(self.act_weights()), len(learners))
        self.crew, self.inline = Crew(config, actor, items, self.board, aids), None

    @property
    def bytes(self):
        """Size of the shared memory that `allocate` takes."""
        return sum(learner.items.bytes for learner in self.learners)

    def allocate(self):
        for learner in self.learners:
            learner.allocate()

    def start(self, state=None):
        """Start, or resume from a checkpoint's state."""
        if self.learners[0].memory is None:
            self.allocate()
        if state:
            self.load(state)
        elif self.config.fd:
            remember_demos(self.config, self.learners[0])
        replay.publish_weights(self.board, self.act_weights())
        self.inline = self.crew.begin()
        if self.inline and state:
            self.inline.load(state["actor"])
        if self.inline and not self.inline.state():  # its world cannot be saved: reseed next time
            self.crew.lives[0] += 1
        return self

    def close(self):
        self.crew.close()

    def act_weights(self):
        return np.concatenate([learner.agent.act_weights() for learner in self.learners])

    @property
    def steps(self):
        return int(self.board.steps.sum())

    @property
    def updates(self):
        return sum(learner.agent.updates for learner in self.learners)

    def progress(self):
        """For the progress bar: phase, steps done, steps in all."""
        return "", self.steps, self.config.steps

    def finished(self):
        return self.steps >= self.config.steps and self.due() < self.config.round

    def due(self):
        """Updates that the environment steps so far call for, less those made."""
        config, steps = self.config, self.steps
        enough = all(len(learner.memory) >= config.batch for learner in self.learners)
        if steps < config.warmup or not enough:
            return 0
        return int((steps - config.warmup) * config.updates_per_step) - self.updates

    def round(self):
        """Act (with --actors 0), collect new items, learn if a round of updates is due."""
        self.crew.supervise()
        self.set_limits()
        if self.inline and self.inline.ready():
            self.inline.step()
        new = sum([learner.memory.collect() for learner in self.learners])
        if self.due() >= self.config.round:
            for learner in self.learners:
                learner.credit += learner.share
            learner = max(self.learners, key=lambda learner: learner.credit)
            learner.agent.anneal(max(self.steps / self.config.steps, self.elapsed))
            learner.learn()
            replay.publish_weights(self.board, self.act_weights())
        elif not new and not self.inline:
            time.sleep(0.0005)

    def set_limits(self):
        """Actors may be ahead of the learner by two rounds and a step of each, not more.

        All together: while one is started anew, the others go on.
        """
        config, most = self.config, self.config.steps
        if config.updates_per_step:
            ahead = (self.updates + 2 * config.round) / config.updates_per_step
            most = min(most, config.warmup + ahead)
        self.board.limit[0] = math.ceil(most)

    # -- results, rows of metrics.csv, checkpoints

    def evaluate(self, episodes, stop=None):
        """Evaluate the current policies; None if `stop` is asked for meanwhile."""
        return self.play(self.config, self.nets(), episodes, stop)

    def nets(self):
        """Copies of the current networks, to evaluate."""
        return [copy.deepcopy(learner.agent.online) for learner in self.learners]

    def row(self):
        """Numbers for a row of metrics.csv."""
        board = self.board
        learned = max(1, self.steps - self.config.warmup)
        row = {"steps": self.steps, "updates": self.updates, "ratio": self.updates / learned}
        row["episodes"] = int(board.episodes.sum())
        for kind, learner in enumerate(self.learners):
            latest = replay.read_returns(board, kind)
            row[learner.name + "return"] = latest.mean() if len(latest) else np.nan
            row |= learner.row()
        return row

    def state(self):
        board = {n: getattr(self.board, n).copy() for n in ("steps", "episodes", "returns")}
        for learner in self.learners:
            learner.memory.collect()  # after the steps were read: no item of theirs is lost
        return {"learners": [learner.state() for learner in self.learners],
                "actor": self.inline.state() if self.inline else {}, "board": board,
                "lives": list(self.crew.lives), "mark": self.mark}  # fmt: skip

    def load_policies(self, state):
        """Only the networks, to evaluate a run."""
        same = 0 in (self.mark, state["mark"]) or self.mark == state["mark"]  # 0: not marked
        folder = self.config.demos
        env.check(same, f"the run was trained on other demonstrations than there are in {folder}")
        for learner, saved in zip(self.learners, state["learners"], strict=True):
            learner.agent.load(saved["agent"])

    def load(self, state):
        self.load_policies(state)
        for learner, saved in zip(self.learners, state["learners"], strict=True):
            learner.load(saved)
        for name, value in state["board"].items():
            getattr(self.board, name)[:] = value
        self.crew.lives = state["lives"]


def make_run(config):
    """A run of D4PG, or of D4PGfD, or of either with demonstrations as a curriculum."""
    config = complete(config)
    check_config(config, FLAGS, {})
    tune(config.threads)
    check_demos(config)
    aids = (start_states(config),) if config.curriculum else ()
    mark = zlib.crc32(aids[0].states) if aids else 0
    world = make_world(config, 1, 0)
    fields = item_fields(world)
    agent = Agent(config, fields["obs"][0], len(world.low))
    learner = Learner(agent, fields, config.robots, sampling=config.sampling)
    return Run(config, [learner], Actor, evaluate, aids, mark)


def complete(config):
    """A copy of the flags, with Vmax derived from γ if both bounds are 0."""
    config = SimpleNamespace(**vars(config))
    env.check(0 < config.gamma < 1, f"--gamma is {config.gamma}; expected between 0 and 1")
    if config.vmax == config.vmin == 0:
        config.vmax = 1 / (1 - config.gamma)
    return config


LIMITS = {  # of flags: least and greatest value; else 1 and 10**15
    "actors": (0, 1000), "robots": (1, 10_000), "updates_per_step": (0, 1000), "nstep": (1, 1000),
    "hidden": (1, 10_000), "dial": (0, 10), "eval_episodes": (1, 10_000), "atoms": (2, 10_000),
    "policy_lr": (0, 1), "critic_lr": (0, 1), "sigma_min": (1e-9, 100), "sigma_max": (1e-9, 100),
    "seed": (0, 2**32 - 1), "horizon": (0, env.LONGEST), "warmup": (1, 10**12),
    "vmin": (-1e30, 1e30), "vmax": (-1e30, 1e30), "gamma": (0, 1), "fd": (0, 10**6),
    "curriculum": (0, env.LONGEST), "lr_end": (0, 1),
}  # fmt: skip


def check_flags(config, flags, limits):
    """Refuse flags out of range."""
    for name, (_, *values) in flags.items():
        value, (low, high) = getattr(config, name), limits.get(name, (1, 10**15))
        good = value in (choices := CHOICES.get(name, ())) or not choices
        env.check(good, f"--{name} is {value!r}; it is one of {', '.join(choices)}")
        good = isinstance(value, str) or low <= value <= high  # false for a NaN, too
        env.check(good, f"--{name} is {value}; expected a number from {low:g} to {high:g}")
        good = not isinstance(values[1], int) or isinstance(value, int)
        env.check(good, f"--{name} is {value!r}; expected a whole number")
    good = config.device == "cpu" or torch.cuda.is_available()
    env.check(good, f"--device is {config.device}, and torch finds no GPU here; --device cpu works")


def check_config(config, flags, limits, others=0):
    """Refuse wrong flags before the run; `others`: robots that do not fill the first memory."""
    check = env.check
    check_flags(config, flags, LIMITS | limits)
    good = config.sigma_min <= config.sigma_max
    check(good, f"--sigma_min is {config.sigma_min}; expected no more than --sigma_max")
    check(config.env == "stack" or config.env.startswith("gymnasium:"),
          f"--env is {config.env!r}; it is stack, or gymnasium:ID")  # fmt: skip
    good = config.env == "stack" or config.obs == "features"
    check(good, f"--obs {config.obs} needs --env stack; others have observations of their own")
    check(config.vmin < config.vmax, f"--vmin {config.vmin} is not below --vmax {config.vmax}")
    good = config.vmin <= 0 <= config.vmax
    check(good, f"--vmin {config.vmin} to --vmax {config.vmax} lacks 0, where each sum begins")
    # N-step windows delay items: without a batch after the warm-up, the run would wait forever
    least = config.batch + config.robots * max(config.actors, 1) * config.nstep
    least = -(-least * (config.robots + others) // config.robots)
    check(config.warmup >= least, f"--warmup is {config.warmup}; {least} are needed for a batch")
    updates = (config.steps - config.warmup) * config.updates_per_step
    good = updates >= config.round or not config.updates_per_step
    check(good, f"--steps is {config.steps}: after --warmup, no --round of updates is due")
    good = config.target_period % config.round == 0
    check(good, f"--round is {config.round}; it must divide --target_period")
    least = config.batch * config.round
    check(config.capacity >= least, f"--capacity is {config.capacity}; a round draws {least}")


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def tune(threads):
    """Settings that make a cpu quicker (departure 5)."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # 1e-40 is slower to compute with than 0, and as good
    # Use oneDNN: on the AMD processor that we measured, twice as fast as MKL, and as exact.  On
    # processors with bfloat16 matrix units, it uses these.
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    # glibc returns freed memory to the system, to take it again, page by page, in the next update:
    # a fifth of the time of a network that looks at images.  Let it keep what it has.
    glibc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(glibc, "mallopt"):
        for option, most in ((M_MMAP_THRESHOLD, 1 << 25), (M_TRIM_THRESHOLD, 2**31 - 1)):
            glibc.mallopt(option, most)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # in actors
    # Where OpenMP starts fewer threads than torch asks for, oneDNN leaves rows out, silently.
    whole = (torch.ones(256, 64) @ torch.ones(64, 64) == 64).all()
    env.check(whole, f"with --threads {threads}, matrix products are wrong: "
              "unset OMP_THREAD_LIMIT and OMP_DYNAMIC, or take --threads 1")  # fmt: skip


def check_demos(config):
    """Refuse, before the run starts, demonstrations that --fd or --curriculum cannot use."""
    if config.fd:
        good = config.env == "stack" and config.task == "stack"
        env.check(good, "--fd needs --env stack --task stack: the files hold that task's rewards")
        most = config.fd * config.horizon
        env.check(most < config.capacity, f"--fd {config.fd} is {most} items; raise --capacity")
        demos = demonstrations(config, ("states", "actions", "rewards"), config.fd)
        lengths = sorted({len(demo["actions"]) for demo in demos})
        env.check(len(lengths) == 1, f"--fd: {config.demos} has demonstrations of {lengths} steps; "
                  "make some of one length: python train.py demos --horizon T")  # fmt: skip
    if config.curriculum:
        env.check(config.env == "stack", "--curriculum needs --env stack")


def remember_demos(config, learner):
    """D4PGfD: demonstrations with actions and rewards, in memory for good (Vecerik et al. 2017)."""
    demos = demonstrations(config, ("states", "actions", "rewards"), config.fd)
    for begin in range(0, len(demos), config.robots):  # as many at a time as an actor has robots
        group = demos[begin : begin + config.robots]
        states, actions, rewards = (
            np.stack([d[key] for d in group], 1) for key in ("states", "actions", "rewards")
        )  # [T (+ 1), demos, ...]
        world, n = make_world(config, len(group), 0), len(group)
        window, obs = NStep(n, config.nstep, config.gamma), world.set_state(states[0])
        for t, (action, reward) in enumerate(zip(actions, rewards, strict=True), 1):
            start, last = {"obs": obs, "action": np.float32(action)}, np.full(n, t == len(actions))
            robot, new = window.step(start, reward[:, None], np.ones((n, 1)), last)
            obs = world.set_state(states[t])
            learner.items.write(0, new | {"next_obs": obs[robot]})
            learner.memory.collect()
    learner.memory.index.keep()


def evaluate(config, nets, episodes, stop=None):
    """Return of the policy without noise: one episode each of `episodes` robots."""
    (nets,) = nets
    world = make_world(config, episodes, 1_000_003)  # its seed: no actor's
    obs, total, running = world.observe(), np.zeros(episodes), np.ones(episodes, bool)
    while running.any():
        if stop and stop.asked:
            return None
        obs, reward, _, last = world.step(scaled(pick(nets, obs), world))
        total += np.where(running, reward, 0)
        running &= ~last
        if last.any() and running.any():  # gymnasium's must not be stepped after their end
            obs[last] = world.reset(np.flatnonzero(last))
    return {"eval_return": total.mean(), "eval_std": total.std()}


SHOWN = {"return": "return", "eval_return": "eval"}  # in the progress bar
TABLE = (("return without noise", "eval_return", ""), ("    its spread", "eval_std", ""))
