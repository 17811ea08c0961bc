"""MetaMimic: one policy imitates any demonstration in one shot, another earns more than they do.

https://arxiv.org/abs/1810.05017: sections 2.1 and 2.2, equations 1 and 2, algorithms 1 to 4, table
1, appendix C.2.  The learners are D4PG's (d4pg.py), the networks of figure 3 are in networks.py.

    python train.py                          demonstrations, training, a table and pictures
    python train.py eval runs/NAME --demo FILE          imitate one file in one shot

A demonstration is a sequence of observations d_1, ..., d_T, stored with simulator states to start
episodes from; demonstrators' actions and rewards are never read.  Imitating robots act by π(o_t,
d_{t+1}), task robots by π(o_t).  An imitation episode ends early once the robot has lost track of
the demonstration: for the imitation learner a termination, for the task learner a truncation.
Reaching a demonstration's last frame is a truncation for both.

Departures from the paper, and what it leaves open:
 1. Eq. 2 as printed pays up to β1 + β2 = 17 a step, where Vmax = 100 at γ = 0.99 allows 1.  Here
    β1 and β2 scale the distances inside the exponentials and both terms are halved: at most 1 a
    step, so that a reward below 0.5, table 1's cutoff, means that body and image are off: a robot
    that tracks either exactly stays above it, whatever becomes of the other.
 2. The paper tells no units of eq. 2's distances, and sums over pixels, where we average; how fast
    imitation is learned depends on them (results/LOG.md).  Positions count in 15 cm and 0.15 rad;
    velocities and rotation matrices in ten times that.  Images whose root mean square difference is
    0.5 (of 1) have distance 1.  With images, the last wrist joint, which small ones hardly show,
    has a unit ten times as large.
 3. With --obs features, exact block poses and the vectors between hand and blocks replace the
    image, and policies see the body, too.  The goal enters as d_{t+1} - o_t, normalised by the
    statistics of differences between frames, other features by those of the demonstrations' frames;
    both clipped to ±10, which a block that was lost soon reaches.
 4. The hand-to-block vector may be 3 cm off the demonstration's.  Appendix C.2's 0.01 is 1 cm if it
    is a distance, 10 cm if a squared one: the first ends untrained policies' episodes after two
    steps, the second kept robots that had long lost the block (with a cutoff of 0.3).  With
    features, and noise, the cutoff mostly acts first (results/LOG.md); but a robot that tracks well
    beside a lost block passes it.  From images, limits are looser (SMALL in figures/metamimic.py).
 5. The classroom preset discounts more: γ = 0.9 for imitation, where the next frame tells nearly
    everything, and 0.98 for the task.  Its learning rates are higher, and decay (--lr_end).
 6. Half of all episodes start in the middle of a demonstration (with the paper's curriculum, all);
    --amid 0 is the paper without a curriculum, --amid 1 with it.  Of 200 steps the first 100 end
    before most demonstrations have stacked, of 600 steps the paper's first 300 after that.
 7. One process trains both learners in turn (--task_share).  Each has its own memory, since one
    removes by priority and the other first in, first out; imitating robots write to both.
 8. Training images are shifted at random by up to --shift pixels: encoders would memorise a few
    hundred demonstrations, instead of learning to see where things are.  With --tell, encoders also
    learn to predict the features of o_t and, for imitation, the difference to the goal (auxiliary
    losses), as from rewards alone they learn to see too slowly; robots act on images alone.
 9. The goal shown to the policy may be further ahead than d_{t+1} (--ahead): in an image of 48
    pixels a hand moves by less than one pixel a step.  The reward always compares with d_{t+1}.
10. --preset paper keeps 200,000 items: table 1's million would take 98 GB in each memory, and as
    much again while it is saved.  Its learning rates are 1e-4, where table 1 draws from 5e-5 to
    2e-4; each of four actors steps 64 robots of each kind, where the paper has 256 actors of each.
11. Items also hold the goal that belongs to o_{t+N}: the bootstrap needs it, and the transitions of
    algorithms 1 and 2 lack it.  At a demonstration's end it is d_T once more; as that is a
    truncation, targets bootstrap there from an input with which no item begins.
"""

import zlib
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

import d4pg
import env
import networks
import replay

OWN = {  # name: (what it is; values in the presets tiny, classroom, paper)
    "demos": ("folder of demonstrations", "demos", "demos", "demos"),
    "demonstrations": ("A's demonstrations to train on", 4, 500, 500),
    "validation": ("B's demonstrations to validate on", 4, 200, 500),
    "robots": ("imitating robots per actor", 4, 32, 64),
    "task_robots": ("task robots per actor", 4, 64, 64),
    "updates_per_step": ("updates of the networks for each environment step", 0.5, 0.07, 0.1),
    "lr_end": ("final learning rate, as a fraction of the initial one", 1.0, 0.1, 1.0),
    "steps": ("environment steps in all", 2_000, 3_500_000, 200_000_000),
    "capacity": ("items in each memory", 1_000, 1_000_000, 200_000),
    "gamma": ("γ: discount factor of the task", 0.9, 0.98, 0.99),
    "imitation_gamma": ("γ of imitation", 0.95, 0.9, 0.99),
    "beta_image": ("β1 of eq. 2: scale of image distances, departure 1", 15.0, 15.0, 15.0),
    "beta_body": ("β2 of eq. 2: scale of body distances", 2.0, 2.0, 2.0),
    "cutoff": ("imitation ends early below this reward", 0.5, 0.5, 0.5),
    "deviation": ("imitation ends early with hand to block this far off, m", 0.03, 0.03, 0.03),
    "amid": ("fraction of episodes that start amid a demonstration", 0.5, 0.5, 0.0),
    "curriculum": ("with --amid: episodes start within so many first steps", 10, 100, 300),
    "ahead": ("frames from o_t to the goal shown; 1: d_{t+1}", 1, 1, 1),
    "shift": ("random shift of training images, pixels at most", 0, 4, 0),
    "tell": ("weight of predicting features from images", 0.0, 1.0, 0.0),
    "task_share": ("fraction of updates for the task learner", 0.5, 0.7, 0.5),
    "sigma_min": ("σ: noise of the calmest imitating robot, about", 0.05, 0.05, 0.05),
    "sigma_max": ("σ: noise of the wildest imitating robot, about", 0.25, 0.5, 0.5),
    "task_sigma_min": ("σ: noise of the calmest task robot, about", 0.05, 0.02, 0.02),
    "task_sigma_max": ("σ: noise of the wildest task robot, about", 0.25, 0.25, 0.25),
    "eval_every": ("steps between evaluations", 1_000, 250_000, 1_000_000),
    "eval_episodes": ("demonstrations each of A and B per evaluation", 4, 32, 64),
}
LEFT_OUT = {"env", "fd", "sampling", "vmin", "vmax", *OWN}
FLAGS = {name: of for name, of in d4pg.FLAGS.items() if name not in LEFT_OUT} | OWN
LIMITS = {
    "task_robots": (0, 10_000), "imitation_gamma": (0, 1), "beta_image": (0, 1e6),
    "beta_body": (0, 1e6), "cutoff": (0, 1), "deviation": (0, 100), "amid": (0, 1),
    "task_share": (0, 1), "task_sigma_min": (1e-9, 100), "task_sigma_max": (1e-9, 100),
    "ahead": (1, 1000), "shift": (0, 32), "tell": (0, 1e6),
}  # fmt: skip
IMITATION, TASK = 0, 1  # kinds of robots, learners and rewards


# --------------------------------------------------------------------------------------------
# Demonstrations, as observations
# --------------------------------------------------------------------------------------------


def load_demos(config, source, count):
    """The first `count` demonstrations of a folder, or a file's one, their frames concatenated.

    Of each frame: what policies see (`frames`: features or an image), its ground-truth features,
    its simulator state.  Of each demonstration: the indices of its first and last (`end`) frame.
    """
    every = env.load_demos(source, "stack", ("states", "obs/features"), count)
    world = d4pg.make_world(config, 1, 0)
    look = world.observe()
    for number, demo in enumerate(every):
        try:
            check_demo(config, demo, world)
        except ValueError as error:
            raise ValueError(f"{source}, demonstration {number}: {error}") from None
    features = np.concatenate([demo["obs/features"] for demo in every])
    states = np.concatenate([demo["states"] for demo in every])
    end = np.cumsum([len(demo["states"]) for demo in every]) - 1
    advice = "lower --demonstrations; frame indices are stored as float32"
    env.check(len(states) < 2**24, f"{len(states)} frames are too many: {advice}")
    demos = replay.Shared(
        frames=((len(states), *look.shape[1:]), look.dtype.type),
        features=(features.shape, np.float32), states=(states.shape, np.float64),
        first=((len(end),), np.int64), end=((len(end),), np.int64),
    )  # fmt: skip
    demos.features[:], demos.states[:], demos.end[:] = features, states, end
    demos.first[1:] = end[:-1] + 1
    if config.obs == "features":
        demos.frames[:] = features
    else:
        chunks = range(0, len(states), 500)
        for k in tqdm(chunks, "demonstrations as images", unit="chunk", disable=len(chunks) < 40):
            demos.frames[k : k + 500] = world.render(states[k : k + 500])
    return demos


def check_demo(config, demo, world):
    """A demonstration must fit into an episode, and its beginning into the world."""
    T = len(demo["states"]) - 1
    advice = f"an episode here has {config.horizon}; a run with --horizon {T} can imitate it"
    env.check(config.horizon >= T, f"it has {T} steps, {advice}")
    env.check_states(demo["states"], T + 1, world.state_size, (13, 20))
    off = np.abs(demo["states"][:, 0] * world.RATE - np.arange(T + 1)).max()
    env.check(off < 1e-3, f"it does not go on from time 0 in steps of {1 / world.RATE} s")
    world.set_state(demo["states"][:1])
    off = np.abs(world.features()[0] - demo["obs/features"][0]).max()
    env.check(off < 1e-3, f"it begins in a state that looks different here, by {off:.2g}")


def task_rewards(config, demos, count):
    """Task rewards of the first `count` demonstrations, computed from their states.  [T, count]"""
    world, rewards = env.Stack(count, horizon=config.horizon), []
    for t in range(1, config.horizon + 1):
        frame, going = at(demos, count, t)
        world.set_state(demos.states[frame])
        rewards.append(np.where(going, env.REWARDS[config.task][world.stage()], 0))
    return np.stack(rewards)


def at(demos, count, t):
    """Indices of the first `count` demonstrations' frames at t, or their last; which reach t."""
    frame, end = demos.first[:count] + t, demos.end[:count]
    return np.minimum(frame, end), frame <= end


# --------------------------------------------------------------------------------------------
# Equation 2, and what the policy looks at
# --------------------------------------------------------------------------------------------

UNITS = np.full(51, 0.15)  # of features in eq. 2: m and rad ...
for name in ("joint_velocities", "pinch_velocity"):
    UNITS[env.Stack.FEATURES[name]] = 1.5  # rad/s, m/s
for name in ("block_a", "block_b"):
    UNITS[env.Stack.FEATURES[name]][3:] = 1.5  # elements of rotation matrices
UNITS_SEEN = UNITS.copy()  # with images: small ones hardly show the last wrist joint
UNITS_SEEN[env.Stack.FEATURES["joints"].start + 5] = 1.5
BODY, SEEN = slice(0, 24), slice(24, 51)  # arm; block poses and relative positions
PIXEL = 0.5  # unit of image distance: root mean square of differences in [0, 1]
HAND_TO_BLOCK = env.Stack.FEATURES["pinch_to_a"]


def tracking(config, o, d, image_o=None, image_d=None):
    """The two terms of eq. 2, image and body, each from 0 to 1.  [2, n]

    o and d are features; the image term compares images where these are given.
    """
    difference = (o - d) / (UNITS if image_o is None else UNITS_SEEN)
    body = (difference[:, BODY] ** 2).sum(1)  # |o_body - d_body|²
    if image_o is None:
        image = (difference[:, SEEN] ** 2).sum(1)  # |o_image - d_image|²
    else:
        difference = np.subtract(image_o, image_d, dtype=np.float32) / 255
        image = np.square(difference).mean((1, 2, 3)) / PIXEL**2
    return np.exp([-config.beta_image * image, -config.beta_body * body])


def compared(config, world, obs, demos, goal):
    """Features of the first m robots and their goals, [m, 51], and eq. 2's terms, [2, m]."""
    o, d = world.features()[: len(goal)], demos.features[goal]
    images = () if config.obs == "features" else (obs[: len(goal)], demos.frames[goal])
    return o, d, tracking(config, o, d, *images)


def lost(config, reward, o, d):
    """Early termination: reward below the cutoff (table 1), or hand-to-block off (C.2).  [n]"""
    off = np.linalg.norm((o - d)[:, HAND_TO_BLOCK], axis=1)
    return (reward < config.cutoff) | (off > config.deviation)


def see(obs, goal):
    """The imitation policy's input: o_t and d_{t+1} (features: d_{t+1} - o_t).  [B, ...]"""
    if obs.dtype == torch.uint8:
        return torch.cat((obs, goal), 3)
    return torch.cat((obs, goal - obs), 1)


def shifted(images, most, rng):
    """Random shifts of each image, up to `most` pixels, edges repeated.  [B, H, W, C]"""
    B, H, W, C = images.shape
    down, right = torch.from_numpy(rng.integers(-most, most + 1, (2, B, 1)))
    row = torch.arange(B)[:, None] * H + (torch.arange(H) - down).clamp(0, H - 1)  # [B, H]
    column = (torch.arange(W) - right).clamp(0, W - 1)  # [B, W]
    pixel = (row[:, :, None] * W + column[:, None, :]).flatten().to(images.device)
    return images.reshape(-1, C).index_select(0, pixel).view(B, H, W, C)


def tells(config):
    """Do encoders of images also learn to predict features?"""
    return config.obs == "pixels" and config.tell > 0


def shapes(shape):
    """Input shapes of the imitation policy and of the task policy, from that of o_t."""
    return ((2 * shape[0],) if len(shape) == 1 else (*shape[:2], 2 * shape[2])), shape


def follow(nets, obs, goal):
    """a_t = π(o_t, d_{t+1}).  [n, 9]"""
    return d4pg.pick(nets, see(torch.from_numpy(obs), torch.from_numpy(goal)).numpy())


# --------------------------------------------------------------------------------------------
# Acting: algorithms 1 and 3
# --------------------------------------------------------------------------------------------


class Actor:
    """A world of robots: the first m imitate (algorithm 1), the others do the task (3)."""

    def __init__(self, config, number, items, board, life, demos):
        self.config, self.number, self.board, self.demos = config, number, board, demos
        self.items, self.m = items, config.robots
        chance = np.random.SeedSequence((2, config.seed, number, life))
        self.rng, n = np.random.default_rng(chance), config.robots + config.task_robots
        self.world = d4pg.make_world(config, n, int(chance.generate_state(1)[0]))
        self.obs = self.world.observe()
        make = lambda shape: d4pg.make_networks(config, shape, len(self.world.low))
        self.networks = [make(shape) for shape in shapes(self.obs.shape[1:])]  # of both kinds
        self.flats = [networks.flatten(part) for nets in self.networks for part in nets[:2]]
        self.version = -1
        mimics = config.robots, config.sigma_min, config.sigma_max
        others = config.task_robots, config.task_sigma_min, config.task_sigma_max
        self.sigma = np.concatenate([d4pg.ladder(config, number, *x) for x in (mimics, others)])
        gammas = np.array([config.imitation_gamma, config.gamma])
        self.window = d4pg.NStep(n, config.nstep, gammas, rewards=2)
        self.returns = np.zeros((n, 2))  # of the current episodes so far: imitation, task
        self.frame, self.end = np.zeros((2, n), np.int64)  # indices of d_t and of the last frame
        self.begin(np.arange(n))

    def begin(self, ids):
        """Start episodes at a demonstration's first frame, a later one, or (task) at random."""
        if not len(ids):
            return
        config, demos, rng = self.config, self.demos, self.rng
        demo = rng.integers(len(demos.first), size=len(ids))  # sample demo d from D
        amid = rng.random(len(ids)) < config.amid * (config.curriculum > 0)
        most = np.minimum(config.curriculum, demos.end[demo] - demos.first[demo])
        t = np.where(amid, rng.integers(np.maximum(most, 1)), 0)
        self.frame[ids], self.end[ids] = demos.first[demo] + t, demos.end[demo]
        self.returns[ids] = 0
        placed = (ids < self.m) | amid
        if not placed.all():
            self.obs[ids[~placed]] = self.world.reset(ids[~placed])
        if placed.any():  # set initial state o_1 to demo state d_1 (or d_t)
            ids = ids[placed]
            self.obs[ids] = self.world.set_state(demos.states[self.frame[ids]], ids)

    def ready(self):
        """May this actor step: are all together below the step limit, and slots enough free?"""
        board, k, N = self.board, self.number, self.config.nstep
        most = self.m * N, self.world.n * N  # items, if all episodes end at once
        room = all(items.room(k) >= n for items, n in zip(self.items, most, strict=True))
        return board.steps.sum() < board.limit[0] and room

    def act(self, shown):
        """a_t of all robots, shown these frames, with exploration noise.  [n, 9]"""
        config, m, shape = self.config, self.m, (self.world.n, len(self.world.low))
        if self.board.steps.sum() < config.warmup:
            return self.rng.uniform(-1, 1, shape).astype(np.float32)
        imitation = follow(self.networks[IMITATION], self.obs[:m], self.demos.frames[shown[:m]])
        task = d4pg.pick(self.networks[TASK], self.obs[m:])  # a_t = π(o_t)
        noise = self.sigma * self.rng.standard_normal(shape, np.float32)
        return (np.concatenate([imitation, task]) + noise).clip(-1, 1)

    def step(self):
        """One step of every robot: the bodies of the loops over t in algorithms 1 and 3."""
        config, world, demos, board, m = self.config, self.world, self.demos, self.board, self.m
        d4pg.take_weights(self)
        goal = np.minimum(self.frame + 1, self.end)  # index of d_{t+1}  [n]
        shown = np.minimum(self.frame + config.ahead, self.end)
        told = {"told": world.features()} if tells(config) else {}  # of o_t
        action = self.act(shown)  # sample action a_t = π(o_t, d_{t+1})
        next_obs, task, discount, last = world.step(action)  # execute, observe o_{t+1}, r_task
        d4pg.check_finite(next_obs, task)

        o_next, d_next, terms = compared(config, world, next_obs, demos, goal[:m])
        imitation, early = np.zeros(world.n), np.zeros(world.n, bool)
        imitation[:m] = terms.mean(0)  # r(o_{t+1}, d_{t+1})
        early[:m] = lost(config, imitation[:m], o_next, d_next)
        over = (np.arange(world.n) < m) & (goal == self.end)
        last = last | early | over
        rewards = np.stack([imitation, task], 1)  # [n, 2]
        discounts = np.stack([np.where(early, 0, discount), discount], 1)

        self.frame = goal
        begin = {"obs": self.obs, "action": action, "goal": np.float32(shown[:, None])} | told
        robot, items = self.window.step(begin, rewards, discounts, last)
        items["next_obs"] = next_obs[robot]
        items["next_goal"] = np.float32(np.minimum(goal + config.ahead, self.end)[robot][:, None])
        self.remember(robot, items)
        self.returns += rewards
        for i in np.flatnonzero(last):
            kind = IMITATION if i < m else TASK
            replay.publish_return(board, self.number, self.returns[i, kind], kind)
        self.obs = next_obs
        self.begin(np.flatnonzero(last))
        board.steps[self.number] += world.n

    def remember(self, robot, items):
        """Store (o_t, a_t, o_{t+1}, r_task, r_imitate, d_{t+1}) in M: each memory gets its part."""
        for kind, memory in enumerate(self.items):
            rows = np.flatnonzero((robot < self.m) | (kind == TASK))
            theirs = {name: items[name][rows] for name in memory.fields}
            theirs |= {name: theirs[name][:, [kind]] for name in ("reward", "discount")}
            memory.write(self.number, theirs)

    def state(self):
        return d4pg.actor_state(self, "returns", "frame", "end")

    def load(self, state):
        d4pg.load_actor(self, state, "returns", "frame", "end")


# --------------------------------------------------------------------------------------------
# Learning: algorithms 2 and 4
# --------------------------------------------------------------------------------------------


def make_learners(config, demos):
    """The imitation and the task learner: D4PG ("an off-policy RL algorithm A"), a memory M."""
    world = d4pg.make_world(config, 1, 0)
    fields, number = d4pg.item_fields(world), ((1,), np.float32)
    if tells(config):
        fields["told"] = (world.features().shape[1:], np.float32)
    if demos:
        frames, features = (
            torch.from_numpy(x).to(config.device) for x in (demos.frames, demos.features)
        )
    γ = config.imitation_gamma
    mimic = SimpleNamespace(**vars(config) | {"gamma": γ, "vmax": 1 / (1 - γ)})
    looks, facts = (shapes(x.shape[1:]) for x in (world.observe(), world.features()))
    agents = [
        d4pg.Agent(flags, shape, len(world.low), told * tells(config))
        for flags, shape, (told,) in zip((mimic, config), looks, facts, strict=True)
    ]
    scales = [networks.Scale(*shape).to(config.device) for shape in facts]

    def prepare(batch, kind):
        """Shift images at random, and normalise the features to predict."""
        if config.obs == "features":
            return batch
        if tells(config):
            batch = batch | {"told": scales[kind](batch["told"])}
        # seeded by the update alone, so that a resumed run draws the same
        rng = np.random.default_rng((7, config.seed, kind, agents[kind].updates))
        names = ("obs", "next_obs") if config.shift else ()
        return batch | {name: shifted(batch[name], config.shift, rng) for name in names}

    def look(batch):  # memory holds d_{t+1}'s frame index: look the frame up
        goal, next_goal = (batch[name][:, 0].long() for name in ("goal", "next_goal"))
        seen = {"obs": see(batch["obs"], frames[goal])}
        seen["next_obs"] = see(batch["next_obs"], frames[next_goal])
        if tells(config):
            seen["told"] = see(batch["told"], features[goal])
        return prepare(batch | seen, IMITATION)

    theirs = fields | {"goal": number, "next_goal": number}
    imitation = d4pg.Learner(  # algorithm 2
        agents[IMITATION], theirs, config.robots, "imitation_", "prioritised", look
    )
    everyone = config.robots + config.task_robots
    task = d4pg.Learner(  # algorithm 4
        agents[TASK], fields, everyone, "task_", "uniform", lambda batch: prepare(batch, TASK)
    )
    imitation.share, task.share = 1 - config.task_share, config.task_share
    if demos:
        fit_scales(config, demos, features, (imitation, task), scales)
    return [imitation, task]


def fit_scales(config, demos, features, learners, scales):
    """Normalise features, as inputs or as what --tell predicts, by the demonstrations'."""
    now = np.setdiff1d(np.arange(len(features)), demos.end)  # all frames but the last ones
    then = np.minimum(now + config.ahead, demos.end[np.searchsorted(demos.end, now)])
    both = (see(features[now], features[then]), 0.001), (features, 0.01)
    for learner, scale, (examples, least) in zip(learners, scales, both, strict=True):
        if config.obs == "features":
            learner.fit_scale(examples, least)
        else:
            scale.fit(examples, least)


def completed(config):
    """A copy of the flags, checked, with derived values."""
    config = SimpleNamespace(**vars(config), env="stack", fd=0, vmin=0.0, vmax=0.0)
    config = d4pg.complete(config)
    gamma = config.imitation_gamma
    env.check(0 < gamma < 1, f"--imitation_gamma is {gamma}; expected between 0 and 1")
    d4pg.check_config(config, FLAGS, LIMITS, config.task_robots)
    low, high = config.task_sigma_min, config.task_sigma_max
    env.check(low <= high, f"--task_sigma_min is {low}; expected no more than --task_sigma_max")
    return config


def people(config):
    """(folder, number of demonstrations) of person A, for training, and of B, for validation."""
    folders = (env.demo_folder(config.demos, "stack", by, config.horizon) for by in env.PEOPLE)
    return list(zip(folders, (config.demonstrations, config.validation), strict=True))


def make_missing(config):
    """Generate the demonstrations that a new run needs and does not find."""
    for folder, count in people(completed(config)):
        if len(list(folder.glob("*.npz"))) < count:
            made = max(500, count)
            env.make_demos(folder, "stack", folder.name, made, horizon=config.horizon)


def make_run(config, alone=False):
    """A run of MetaMimic; `alone`: its networks only, with no demonstrations loaded."""
    config = completed(config)
    d4pg.tune(config.threads)
    if alone:
        return d4pg.Run(config, make_learners(config, None), Actor, None)
    seen, unseen = (load_demos(config, *person) for person in people(config))
    play = lambda config, nets, count, stop: evaluate(config, nets, count, stop, seen, unseen)
    mark = zlib.crc32(seen.states)
    return d4pg.Run(config, make_learners(config, seen), Actor, play, (seen,), mark)


# --------------------------------------------------------------------------------------------
# How good is it?
# --------------------------------------------------------------------------------------------


def rollout(config, nets, demos, copies, tasks=0, stop=None, watch=None):
    """Imitate the first `copies` demonstrations; do the task from the first `tasks` starts.

    No noise, no early termination.  Returns task rewards [T, copies + tasks], 0 after a
    demonstration's end, and both terms of eq. 2 [T, 2, copies], NaN after it; or None if `stop` is
    asked for.  `watch` is called with the world before every step.
    """
    start = np.concatenate([demos.first[:copies], demos.first[:tasks]])
    world = d4pg.make_world(config, len(start), 0)
    obs, task, imitation = world.set_state(demos.states[start]), [], []
    short = len(start) < 150 and config.obs == "features"
    for t in tqdm(range(config.horizon), "playing", unit="step", disable=short, leave=False):
        if stop and stop.asked:
            return None
        if watch:
            watch(world)
        (goal, going), (_, also) = at(demos, copies, t + 1), at(demos, tasks, t + 1)
        shown, _ = at(demos, copies, t + config.ahead)
        actions = follow(nets[IMITATION], obs[:copies], demos.frames[shown])
        if tasks:
            actions = np.concatenate([actions, d4pg.pick(nets[TASK], obs[copies:])])
        obs, reward, _, _ = world.step(actions)
        _, _, terms = compared(config, world, obs, demos, goal)
        task.append(np.where(np.concatenate([going, also]), reward, 0))
        imitation.append(np.where(going, terms, np.nan))
    return np.stack(task), np.stack(imitation)


def part(rewards, theirs):
    """Total task reward as a fraction of the demonstrations'."""
    return rewards.sum() / theirs.sum() if theirs.any() else np.nan


def first_solved(rewards):
    """The first frame with the full reward in each episode of [T, n]; NaN if none.  [n]"""
    return np.where((rewards == 1).any(0), (rewards == 1).argmax(0) + 1, np.nan)


def frames_to_solve(rewards):
    """Mean of `first_solved` over the episodes that are solved; NaN if none."""
    frames = first_solved(rewards)
    return np.nanmean(frames) if np.isfinite(frames).any() else np.nan


def evaluate(config, nets, count, stop, seen, unseen):
    """Imitation of A's (training) and B's (unseen) first demonstrations; the task policy on A's."""
    n, k = min(count, len(seen.first)), min(count, len(unseen.first))
    ours = rollout(config, nets, seen, n, n, stop)
    theirs = rollout(config, nets, unseen, k, 0, stop) if ours else None
    if theirs is None:
        return None
    (copies, task), A = np.split(ours[0], [n], 1), task_rewards(config, seen, n)
    B = task_rewards(config, unseen, k)
    return {
        "train_episodes": n,
        "val_episodes": k,
        "imitation_train_ratio": part(copies, A),
        "imitation_val_ratio": part(theirs[0], B),
        "imitation_train_reward": np.nanmean(ours[1]),
        "imitation_val_reward": np.nanmean(theirs[1]),
        "tracking_seen_val": np.nanmean(theirs[1][:, 0]),
        "tracking_body_val": np.nanmean(theirs[1][:, 1]),
        "stack_success_train": (copies == 1).any(0).mean(),
        "stack_success_val": (theirs[0] == 1).any(0).mean(),
        "task_policy_ratio": part(task, A),
        "task_policy_success": (task == 1).any(0).mean(),
        "task_policy_frames_to_stack": frames_to_solve(task),
        "demo_frames_to_stack": frames_to_solve(A),
    }


def imitate(config, nets, demos):
    """Results of imitating one demonstration in one shot."""
    (task, imitation), theirs = rollout(config, nets, demos, 1), task_rewards(config, demos, 1)
    return {"task_reward": task.sum(), "demo_task_reward": theirs.sum(),
            "imitation_reward": np.nanmean(imitation), "stacked": (task == 1).any(),
            "frames_to_stack": frames_to_solve(task)}  # fmt: skip


TABLE = (  # label, column, the paper's value
    ("one-shot imitation of A's demonstrations (training), part of their reward",
     "imitation_train_ratio", "0.67 to 0.81"),
    ("one-shot imitation of B's demonstrations (never seen)", "imitation_val_ratio", "0.52"),
    ("    copies of these that solve the task", "stack_success_val", ""),
    ("task policy, part of A's reward", "task_policy_ratio", "1.5"),
    ("    frames until it is solved", "task_policy_frames_to_stack", "50"),
    ("    frames until A has solved it", "demo_frames_to_stack", "200"),
)  # fmt: skip
SHOWN = {  # in the progress bar
    "imitation_train_ratio": "A", "imitation_val_ratio": "B", "imitation_val_reward": "r",
    "stack_success_val": "solved", "task_policy_ratio": "task",
}  # fmt: skip
