"""MILI: one-shot imitation that improves by its own trials.

https://arxiv.org/abs/2003.02636: sections II to IV, equations 1 to 3, algorithm 1, and the
comparisons of section V.  The networks of figure 3 are in networks.py, the kitchen in env.py.

    python train.py mili                      demonstrations, training, trials, a table, pictures
    python train.py mili --method meta        meta-imitation; bc, oracle and random likewise

A policy π(a | o, f(d)) sees the camera's image o, the gripper's pose, and a demonstration d through
f, whose vectors of length 1 are alike for alike tasks.  It learns from a few demonstrations of many
tasks, tries what demonstrations show in new arrangements, keeps what was useful for anything (the
filter F), and pairs what f finds alike: each pair is a new task to learn from.

Departures from the paper, and what it leaves open:
 1. Means over a batch stand for the sums of eqs. 1 and 2, and the mean over its tasks for L_c's.
 2. Both demonstrations of a pair are cloned, each under the embedding of the other: twice as much
    learned from images that have been looked at anyway.
 3. The mixture's means are told from where the gripper is, in units of what it moves in a step;
    its fingers and its upright bearing from 0.  Actions are absolute poses, as in the paper.  A
    component is drawn, by the squares of their weights: the likeliest alone keeps a robot for good
    where staying is but a little likelier than going on.
 4. The policy also learns when it is done (the last two frames of a demonstration), as its
    authors' published code can: a trial ends five steps after it says so, or after 50 steps.
 5. Two tasks of the same family with the same objects are one task, whatever scene they are in.
 6. A batch after trials is half of demonstrations, half of pairs of trials: any trial that has
    partners (eq. 2 has any pair), then one of its eight most alike: more of these are right.  The
    contrastive loss goes on, on the demonstrations, so that a next round has an embedding to pair
    with (line 24 has eq. 2 alone).
 7. α is what would pair the validation tasks' demonstrations best (F1), were they of --tasks tasks:
    the more there are, the more pairs are wrong.  Trials do still others, so that more of theirs
    are than this foresees.  --alpha 0.9 is the paper's.
 8. The policy learns what it goes for, too, in two looks: most moves tell only roughly where they
    lead.  Of the first look's glimpses, two learn to find what is touched and what that is brought
    to, as far as the gripper's path tells, and what has moved ahead of it; three of the second, by
    what the first has found, where the gripper will be 5 steps later, where it next comes down, and
    where it ends.  A push begins behind one thing as seen from another: at a place that looks like
    nothing.  Places are told on the table, from the gripper: the camera's place is known.  A third
    look is close: the image's pixels around where it comes down, as if seen from above, tell where
    exactly that is and how the gripper is turned there, by themselves, since whoever is told the
    pose, too, learns to believe that.  To learn from, half of these pictures are turned.  Means are
    told from a turn towards that yaw.  f learns to find the gripper, and looks closely there, too.
 9. Images to learn from are made anew.  Two hundred tasks are easily known by heart: where a scene
    is demonstrated with one task alone, the scene tells the task, and nobody looks at what is
    shown.  So parts of what stands still are replaced by what stands still in others, half of the
    batches are mirrored, left for right, and in three of four all colours are turned.
10. A demonstration is cloned until its task is done, a trial until all is that it achieved.  What
    follows looks like what came before: robots stood still above a button that they had not
    pressed yet, and half of a push's trial was what the robot did because it did not know its end.
    Four steps follow what is placed: fingers just opened touch it still, and may have to withdraw.
11. Poses to learn from are inexact, actions are not, nor is the yaw that turns are told from: so
    whoever is a centimetre off knows back.
    Felt, too, is how far the fingers have just moved, and how far they are from where they were
    told to be: are they closing still, are they open, or do they hold something?
12. An episode is seen by 8 of its frames (40 with --preset paper), and learned from at these, its
    first and last among them: rather many episodes in a batch than many frames of one.
13. Steps of trials in which nothing moved are left out: a policy without memory learns to wait.
14. Who was of no use is driven home by a script and tries again from what it has left, up to
    --tries times in a row, each judged by itself from when it was home.  Only the try that was of
    use is learned from, its way home included: demonstrations do not fail, so those who learn from
    them alone know no way back; and most starts are either known already or are not, so that
    whatever is useful comes from those that are.
15. Half of the trials begin in scenes of other tasks than the one that is demonstrated
    (--elsewhere), as section IV-B has "new scenes", and algorithm 1, line 12, the task's own.
16. Meta-imitation is the policy before its trials, and behaviour cloning the same without f(d):
    both with eq. 3 and departures 4 and 8, while the paper's have eq. 2 and eq. 1 alone.  What as
    many updates more from demonstrations alone gain is measured, too (`longer` in
    figures/mili.py): the rest is due to trials.
17. Adam's steps shrink to --lr_end of what they were, gradients are no longer than 10, and each
    training begins with an Adam that remembers nothing.
"""

import json
import math
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

import d4pg
import env
import networks
import replay

FLAGS = {  # name: (what it is; values in the presets tiny, classroom, paper)
    "demos": ("folder of demonstrations", "demos", "demos", "demos"),
    "method": (
        "mili; meta: without trials; bc: without a demonstration, too; oracle, random: pairs",
    )
    + ("mili", "mili", "mili"),
    "start": ("a run whose first policy and trials to take over", "", "", ""),
    "tasks": ("that are demonstrated, of 520", 8, 200, 200),
    "per_task": ("demonstrations of each task", 2, 4, 4),
    "size": ("of images, in pixels", 32, 48, 100),
    "frames": ("of a demonstration, to embed it and to learn from", 4, 8, 40),
    "channels": ("of the convolutions", 8, 32, 32),
    "components": ("K: of the mixture; their code: 1 to 20", 2, 10, 20),
    "half": ("convolutions in bfloat16; auto: where that is quick", "no", "auto", "auto"),
    "batch": ("pairs of demonstrations in a batch", 4, 24, 8),
    "anew": ("images to learn from are made anew, departure 9: yes, or no as theirs",)
    + ("yes", "yes", "no"),
    "lr": ("Adam's step", 1e-3, 1e-3, 5e-4),
    "lr_end": ("part of it that is left at the end of each training", 1.0, 0.05, 1.0),
    "beta": ("β: margin of the contrastive loss", 1.0, 1.0, 1.0),
    "updates": ("from demonstrations (paper: as its authors' code has)", 20, 3_000, 5_000),
    "rounds": ("of trials", 1, 1, 1),
    "trials": ("B: tries in a round, whole chunks of --robots times --tries", 16, 6_000, 60_000),
    "tries": ("of a robot in a row, until one is useful", 1, 3, 1),
    "elsewhere": ("part of the trials in scenes that are not the demonstration's", 0.0, 0.5, 0.5),
    "alpha": ("α: pairs are more alike than this; 0: what is best on validation tasks",)
    + (0.0, 0.0, 0.9),
    "retrain": ("updates from demonstrations and trials, after each round", 20, 2_500, 5_000),
    "share": ("part of a batch that is trials, then", 0.5, 0.5, 0.5),
    "memory_gb": ("for the trials' images; trials beyond that are left out", 1.0, 6.0, 32.0),
    "actors": ("processes that try, and render; 0: one process does all in turn", 0, 2, 16),
    "robots": ("that try at once, of each actor", 4, 50, 50),
    "seed": ("of what is drawn at random to learn and to try", 0, 0, 0),
    "device": ("of the learner: cpu or cuda", "cpu", "cpu", "cuda"),
    "threads": ("of the learner on a cpu", 1, 2, 2),
    "log_every": ("updates or trials between rows of metrics.csv", 10, 200, 1_000),
    "eval_every": ("between evaluations", 20, 2_000, 1_000),
    "eval_episodes": ("of each validation task, in each of them", 1, 1, 1),
    "validation": ("of each validation task, at the end", 1, 10, 10),
}
LIMITS = {
    "tasks": (4, 520), "per_task": (2, 100), "size": (32, 256), "frames": (3, env.LONGEST),
    "components": (1, 100), "lr": (0, 1), "lr_end": (0, 1), "beta": (0, 4), "rounds": (0, 100),
    "tries": (1, 100), "elsewhere": (0, 1), "alpha": (0, 1), "share": (0, 1),
    "memory_gb": (0, 10_000), "actors": (0, 1000), "robots": (1, 1000), "seed": (0, 2**32 - 1),
    "validation": (1, 1000), "eval_episodes": (1, 1000), "batch": (2, 10_000),
}  # fmt: skip
METHODS = ("mili", "meta", "bc", "oracle", "random")
REACH, HOME = env.Kitchen.REACH.astype(np.float32), env.Kitchen.HOME.astype(np.float32)
REST, UNIT = np.append(HOME, [0, 0]), np.append(REACH, REACH[[6, 6]])  # of what a robot feels
SOON = 5  # steps: where the gripper will be then is looked for
NEAR = 0.3  # of half an image: what is as near to what an episode is about is never replaced
INEXACT = np.array([0.01, 0.01, 0.01, 0, 0, 0.1, 0.02, 0.02, 0.02])  # σ of what is felt, m and rad
LEAVE = 4  # steps in which a gripper withdraws from what it has placed
SLIDES = 0.05  # m along the table, at least, of a gripper that pushes something
AHEAD = 0.09  # m ahead of it, roughly, is then the middle of what it pushes
BEYOND = 0.06  # m farther ahead of it than that lies, in the end, what that meets
LAST = 2  # so many frames of an episode are where all is done
CLOSELY = 5.0  # weight of what is learned from looking closely
MORE = 5  # steps that a robot takes once it says so
SURE = 6.0  # logit at which a robot says so: a chance of 0.998
MIRROR = {  # left for right
    "pose": np.float32([-1, 1, 1, 1, -1, -1, 1, 1, 1]), "ahead": np.float32([-1, 1]),
    "action": np.float32([-1, 1, 1, 1, -1, -1, 1]), "turned": np.float32([1, -1]),
    "yaw": np.float32(-1),
}  # fmt: skip
BACK = 8  # steps in which a gripper goes home before it tries again
PARTNERS = 8  # of a trial that are kept: those that are most alike
SCENES = 150  # the first so many are those of training tasks


# --------------------------------------------------------------------------------------------
# Episodes: demonstrations, and trials
# --------------------------------------------------------------------------------------------


def chosen_tasks(count):
    """The training tasks that are demonstrated: of each family as many, the same for all seeds."""
    every, rng = env.tasks_of("train"), np.random.default_rng(0)
    families = [[k for k, t in enumerate(every) if t.family == f] for f in env.FAMILIES]
    families = [rng.permutation(numbers) for numbers in families]
    turns = [numbers[i] for i in range(max(map(len, families))) for numbers in families
             if i < len(numbers)]  # fmt: skip
    return sorted(int(k) for k in turns[:count])


def demo_paths(config, split, numbers):
    """Of the demonstrations of these tasks of a split, one task after the other."""
    folder, each = env.demo_folder(config.demos, "kitchen", split), per_task(config, split)
    return [folder / f"{task:03d}_{k}.npz" for task in numbers for k in range(each)]


def per_task(config, split):
    """Demonstrations of each task; to be judged by, whatever is learned from, four at most."""
    return config.per_task if split == "train" else min(config.per_task, 4)


def load_demos(config, split, numbers):
    """Demonstrations of these tasks of a split, each an episode that ends once its task is done."""
    episodes, tasks, slots = [], env.tasks_of(split), np.arange(len(env.SLOTS))
    paths = demo_paths(config, split, numbers)
    for path in tqdm(paths, f"{split} demonstrations", leave=False, disable=len(paths) < 2_000):
        demo = env.load_demo(path, "kitchen", ("states", "actions", "rewards"))
        task = tasks[int(path.name[:3])]
        here = (demo["scene"], demo["slot"]) == tuple(task) and demo["rewards"].any()
        env.check(here, f"{path} does not show task {path.name[:3]} of {split}")
        done = {"achieved": slots == task.slot, "since": int(demo["rewards"].argmax()) + 1}
        episodes.append(ended(demo | done | {"scene": task.scene}))
    return episodes


def ended(episode):
    """Until all that it achieved is done: departure 10."""
    placed = any(env.SLOTS[slot][0] == "place" for slot in np.flatnonzero(episode["achieved"]))
    T = episode["since"] + LEAVE * placed
    kept = {"states": episode["states"][: T + 1], "actions": episode["actions"][:T]}
    return kept | {name: episode[name] for name in ("scene", "achieved")}


def whats(episodes):
    """Which tasks each has achieved, by family and objects.  [E, tasks] float32"""
    names = [
        {env.Task(e["scene"], int(slot)).what for slot in np.flatnonzero(e["achieved"])}
        for e in episodes
    ]
    number = {name: k for k, name in enumerate(sorted(set().union(*names), key=str))}
    table = np.zeros((len(episodes), len(number)), np.float32)
    for row, mine in zip(table, names, strict=True):
        row[[number[name] for name in mine]] = 1
    return table


class Library:
    """Episodes' frames one after the other, images in shared memory.

    image [M, H, W, 3], pose [M, 9], yaw [M], action [M, 7], done [M], ahead [M, 5, 2] on the table,
    turned [M, 2]; first and length of each episode.  An episode's last frame has its last action
    again.
    """

    def __init__(self, config, episodes, what):
        self.episodes, length = episodes, [len(e["states"]) for e in episodes]
        self.length, self.first = np.array(length), np.cumsum([0, *length[:-1]])
        self.what = whats(episodes)
        states = np.concatenate([e["states"] for e in episodes])
        pose = poses(states)
        before = np.maximum(np.arange(len(pose)) - 1, np.repeat(self.first, length))
        actions = [np.concatenate([e["actions"], e["actions"][-1:]]) for e in episodes]
        self.action = np.float32(np.concatenate(actions))
        told = np.where(before < np.arange(len(pose)), self.action[before, 6], pose[:, 6])
        self.pose = felt(pose, pose[before], told)
        left = np.concatenate([np.arange(n)[::-1] for n in length])
        self.done = np.float32(left < LAST)
        scene = np.repeat([e["scene"] for e in episodes], length)
        self.image = render(config, states, scene, what)
        some = self.first[np.linspace(0, len(self) - 1, min(len(self), 500)).astype(int)]
        home = np.uint8(np.median(self.image[some], 0))  # the table, and a gripper that begins
        then, at = [], []
        for e, n in zip(self.first, length, strict=True):
            path = self.pose[e : e + n, :3]
            then.append(e + ahead(path[:, 2]))
            at.append(things(path, moved(self.image[e : e + n], home)))
        then, self.yaw = np.concatenate(then), self.pose[:, 5]
        self.ahead = np.concatenate([self.pose[then, :2], np.concatenate(at)], 1)
        self.turned = twice(self.yaw[then[:, 1]])

    def __len__(self):
        return len(self.first)

    def moments(self, episodes, frames, rng=None):
        """So many frames of each, first and last among them: evenly, or at random all over."""
        part, between = np.linspace(0, 1, frames), frames - 2
        part = np.tile(part, (*episodes.shape, 1))
        if rng:
            u = rng.random((*episodes.shape, between))
            part[..., 1:-1] = (np.arange(between) + u) / between
        n = self.length[episodes][..., None]
        return self.first[episodes][..., None] + np.minimum((part * n).astype(int), n - 1)

    def take(self, moments):
        names = ("image", "pose", "yaw", "action", "done", "ahead", "turned")
        return {name: getattr(self, name)[moments] for name in names}


def twice(yaw):
    """Cosine and sine of twice an angle: the same for jaws turned by half a turn.  [..., 2]"""
    return np.stack([np.cos(2 * yaw), np.sin(2 * yaw)], -1)


def ahead(z):
    """Of an episode's frames: those soon after, where it has next come down, and at its end.

    z [T], its height in m; frames [T, 3].
    """
    now, end = np.arange(len(z)), len(z) - 1
    down = np.array([*landings(z), end])
    following = np.minimum(np.searchsorted(down, now, side="right"), len(down) - 1)
    return np.stack([np.minimum(now + SOON, end), down[following], np.full_like(now, end)], 1)


def things(path, mask, much=0.03):
    """Where the thing lies that is touched first, and the one that it is brought to.

    As far as it can be told from the gripper's path [T, 3]: where it lands first and last.  Where
    it slides, it pushes what lies ahead of it and has moved, as a mask of the image [H, W] tells,
    and in the end what it pushes is between it and the other.  [T, 2, 2]
    """
    xy, z = path[:, :2], path[:, 2]
    down = landings(z) or [len(z) - 1]
    rises = np.append(np.flatnonzero(z[down[0] :] > z[down[0]] + much), len(z) - down[0])
    low = down[0] + rises[0] - 1  # the last frame before it first rises
    start, end, way = xy[down[0]], down[-1], xy[low] - xy[down[0]]
    off = np.zeros((2, 2))  # from the gripper
    if np.hypot(*way) > SLIDES:
        way, end = way / np.hypot(*way), low
        off[0] = middle(mask, start + AHEAD * way) - start
        off[1] = (np.hypot(*off[0]) + BEYOND) * way
    touched = xy[np.clip(np.arange(len(z)), down[0], end)]  # from then on it comes along
    return np.stack([touched + off[0], np.tile(xy[end] + off[1], (len(z), 1))], 1)


def moved(images, home, much=24):
    """Where an episode's first image shows something, and later ones something else.  [H, W]"""
    something = np.abs(images[0].astype(int) - home).max(2) > much
    return something & (images != images[0]).any((0, 3))


def middle(mask, point, wide=0.03):
    """Of what an image shows near a point of the table: its mean, moved until it stays."""
    places = env.scene_camera(0, len(mask), False).on_table(len(mask))[mask]  # [pixels, 2]
    for _ in range(5):
        weight = np.exp(-((places - point) ** 2).sum(1) / 2 / wide**2)
        if weight.sum() < 1e-3:
            break
        point = weight @ places / weight.sum()
    return point


def landings(z, much=0.03, near=0.01):
    """When a gripper has come down: first near each low, but for rises of less than `much`."""
    found, begin, extreme, falling = [], 0, 0, False
    for t in range(len(z)):
        up = z[t] - z[extreme] if falling else z[extreme] - z[t]
        if up <= 0:
            extreme = t  # lower than before, or higher
        elif up > much:
            if falling:
                found.append((begin, extreme))
            begin, extreme, falling = extreme, t, not falling
    if falling:
        found.append((begin, extreme))
    return [a + int(np.argmax(z[a : low + 1] <= z[low] + near)) for a, low in found]


def in_image(size, xy):
    """Where points of the table are seen.  [..., 2]"""
    return seen_at(size, np.concatenate([xy, np.zeros_like(xy[..., :1])], -1))


def seen_at(size, points):
    """Where points [..., 3] are seen, from -1 to 1.  [..., 2]"""
    return env.scene_camera(0, size, False).project(points)


def poses(states):
    """Of the gripper.  [M, 7]"""
    return np.float32(states[:, 1:8] / env.Kitchen.JAW)


def felt(pose, before, told):
    """What a robot feels: its pose, how far its fingers have just moved, and what holds them up.

    Poses [M, 7], now and a step before, and the finger angle [M] that it told then.  [M, 9]
    """
    fingers = pose[:, 6]
    return np.column_stack([pose, fingers - before[:, 6], fingers - told])


def render(config, states, scene, what, chunk=200):
    """All these states' images, by the actors: [M, size, size, 3]."""
    seen = replay.Shared(states=(states.shape, np.float64), scene=((len(states),), np.int64))
    items = replay.Shared(image=((len(states), config.size, config.size, 3), np.uint8))
    seen.states[:], seen.scene[:] = states, scene
    crew = begin_crew(config, Renderer, items, (seen, chunk))
    try:
        with tqdm(total=len(states), desc=what, unit="image", disable=len(states) < 3_000) as bar:
            done = 0
            while done < len(states):
                before, done = done, tend(crew)
                bar.update(done - before)
    finally:
        crew.close()
    return items.image


class Renderer:
    """Every so many-th chunk of frames is this actor's."""

    def __init__(self, config, number, items, board, life, seen, chunk):
        self.items, self.seen, self.chunk = items, seen, chunk
        self.board, self.number = board, number
        self.world = env.Kitchen(1, obs="features", size=config.size)
        step = chunk * max(config.actors, 1)
        self.todo = list(range(number * chunk, len(seen.scene), step))
        board.steps[number] = 0

    def ready(self):
        return bool(self.todo)

    def step(self):
        part = slice(begin := self.todo.pop(0), begin + self.chunk)
        tasks = [env.Task(int(scene), 0) for scene in self.seen.scene[part]]
        self.items.image[part] = self.world.render(self.seen.states[part], tasks)
        self.board.steps[self.number] += len(tasks)


def begin_crew(config, actor, items, aids, weights=()):
    """Actors at work; with --actors 0 one, in this process."""
    board = replay.make_board(max(config.actors, 1), max(len(weights), 1), kinds=2)
    board.weights[: len(weights)] = weights
    crew = d4pg.Crew(config, actor, items, board, aids)
    crew.here = None if config.actors else crew.inline()
    for k in range(config.actors):
        crew.start(k)
    return crew


def tend(crew):
    """Let a crew work for a moment; how much has it done?"""
    if crew.here is None:
        crew.supervise()
        time.sleep(0.02)
    elif crew.here.ready():
        crew.here.step()
    return int(crew.board.steps.sum())


def mingle(batch, table, rng):
    """Replace what stands still in a part of each episode by what stands still there in another.

    A rectangle, or all but one.  What changes in an episode stays, and what is near where its
    gripper comes down or ends, and near the things that it is about: what a push ends at stands
    still.
    """
    images = batch["image"].flatten(0, 1)  # [E, F, H, W, 3]
    (E, _, H, W, _), first, device = images.shape, images[:, 0], images.device
    still = (images == first[:, None]).all(1).all(3)  # [E, H, W]
    y, x = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in (H, W))
    places = in_image(W, batch["ahead"][..., 1:, :]).reshape(E, -1, 2)  # [E, 4 F, 2]
    px, py = torch.from_numpy(places).to(device)[..., None].unbind(2)
    squared = ((x - px) ** 2)[:, :, None] + ((y - py) ** 2)[..., None]  # [E, 4 F, H, W]
    low, high = np.sort(rng.uniform(-1.3, 1.3, (2, 2, E, 1)), 0)
    other_way = rng.random((E, 1, 1)) < 0.5
    there = (torch.from_numpy(z).to(device) for z in (low, high, other_way, table))
    low, high, other_way, table = there
    inside = ((x > low[0]) & (x < high[0]))[:, None] & ((y > low[1]) & (y < high[1]))[..., None]
    part = still & (squared.amin(1) >= NEAR**2) & (inside ^ other_way)
    scenery = torch.where(still[..., None], first, table)
    pairs = scenery.unflatten(0, (-1, 2))  # of two others, if there are so many
    shifts = rng.choice(np.arange(1, E // 2), 2, replace=E < 6)
    other = torch.stack([pairs[:, k].roll(int(shifts[k]), 0) for k in (0, 1)], 1).flatten(0, 1)
    anew = torch.where(part[:, None, ..., None], other[:, None], images)
    batch["image"] = anew.view_as(batch["image"])


def empty_table(size):
    """The image without anything on the table.  [size, size, 3]"""
    return env.scene_camera(0, size, False).bright.reshape(size, size, 3)


def misjudge(batch, rng):
    """Tell poses inexactly: departure 11."""
    noise = rng.normal(0, INEXACT, batch["pose"].shape)
    batch["pose"] = batch["pose"] + noise.astype(np.float32)


def vary(batch, rng):
    """Mirror a batch, left for right, or turn its colours, by chance: departure 9.

    All of it alike: were each pair turned by itself, its colours would tell which two episodes
    belong together.
    """
    if rng.random() < 0.5:
        batch["image"] = batch["image"].flip(-2)
        for name, mirror in MIRROR.items():
            batch[name] = batch[name] * mirror
    if rng.random() < 0.75:
        turn = torch.from_numpy(hues(rng.uniform(0, 2 * np.pi))).to(batch["image"].device)
        batch["image"] = (batch["image"].float() @ turn).round_().clamp_(0, 255).byte()


def glance(batch, rng):
    """By how much to turn what is looked at closely: half of the pictures, by any angle."""
    shape = batch["yaw"].shape
    angle = rng.uniform(-np.pi, np.pi, shape) * (rng.random(shape) < 0.5)
    batch["angle"] = angle.astype(np.float32)


def hues(angle):
    """A turn of all colours about grey.  [3, 3]"""
    grey, axis = np.full((3, 3), 1 / 3), np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / 3**0.5
    return np.float32(grey + math.cos(angle) * (np.eye(3) - grey) + math.sin(angle) * axis)


# --------------------------------------------------------------------------------------------
# Learning: equations 1 to 3
# --------------------------------------------------------------------------------------------


def negative_log_likelihood(mixture, x):
    """-log π of eq. 1, π a mixture of K Gaussians.  [B]"""
    logits, means, σ = mixture
    z = (x[:, None] - means) / σ  # [B, K, 7]
    log_density = -0.5 * z.square() - σ.log() - 0.5 * math.log(2 * math.pi)
    return -(logits.log_softmax(1) + log_density.sum(2)).logsumexp(1)


def contrastive(f_m, f_n, beta):
    """L_c of pairs of N different tasks: embeddings of a task attract, others repel up to β."""
    H = (f_m[:, None] - f_n).square().sum(2)  # ‖f(d_m^j) - f(d_n^k)‖²  [N, N]
    same = torch.eye(len(H), dtype=torch.bool, device=H.device)
    attract, repel = H[same], (beta - H)[~same].clamp(min=0)  # 1(j = k) H + 1(j ≠ k) max(0, β - H)
    return (attract.sum() + repel.sum()) / len(H)


class Agent:
    """f and π, and Adam."""

    def __init__(self, config):
        torch.manual_seed(config.seed)
        self.config = config
        device, half, channels = config.device, config.half, config.channels
        look = networks.Look(channels, half)
        f = networks.Embedding(channels, config.frames, config.size)
        table = env.scene_camera(0, config.size, False).on_table(config.size // 2)
        places = torch.from_numpy((table.reshape(-1, 2) - HOME[:2]) / REACH[:2])
        π = networks.Mixture(channels, places, K=config.components)
        self.nets = torch.nn.ModuleList([look, f, π]).to(device, memory_format=torch.channels_last)
        self.begin()

    def begin(self):
        """A new training."""
        learned = [p for p in self.nets.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(learned, lr=self.config.lr)

    def anneal(self, progress):
        """Smaller steps of Adam as a training goes on, from 0 to 1."""
        for group in self.adam.param_groups:
            group["lr"] = self.config.lr * (1 - (1 - self.config.lr_end) * progress)

    def update(self, batch, n):
        """One step on eq. 3.  Episodes come in pairs: image [N, 2, F, H, W, 3], and so the rest.

        The first n pairs are demonstrations, each pair of another task.
        """
        config, (look, embed, policy) = self.config, self.nets.train()
        batch = batch | {"places": in_image(config.size, batch["ahead"])}
        batch = {k: torch.as_tensor(v, device=config.device) for k, v in batch.items()}
        N, _, F = batch["done"].shape
        images = batch["image"].flatten(0, 2)
        coarse, maps = look(images)
        f, found = embed(images, coarse, F)
        f = f.unflatten(0, (N, 2))
        shown = f.flip(1) if config.method != "bc" else 0 * f  # d_m is cloned under f(d_n)
        shown = shown[:, :, None].expand(-1, -1, F, -1).flatten(0, 2)
        pose, action = batch["pose"].flatten(0, 2), batch["action"].flatten(0, 2)
        told = policy(images, maps, scaled(pose), shown, batch["angle"].flatten())
        mixture, end, (heat, aim), (down, turned) = told
        reach = torch.from_numpy(REACH).to(pose)
        move = (action - base(pose, batch["yaw"].flatten(), turned.detach())) / reach
        way = (batch["ahead"].flatten(0, 2) - pose[:, None, :2]) / reach[:2]
        L_oil = negative_log_likelihood(mixture, move).mean()  # eq. 2
        L_c = contrastive(f[:n, 0], f[:n, 1], config.beta)
        done = batch["done"].flatten()
        L_end = torch.nn.functional.binary_cross_entropy_with_logits(end, done)
        L_hand = networks.surprise(found, batch["hand"].flatten(0, 2)[:, None]).mean()
        L_ahead = networks.surprise(heat, batch["places"].flatten(0, 2)).mean()
        L_ahead = L_ahead + torch.nn.functional.smooth_l1_loss(aim, way, beta=0.3)
        L_down = torch.nn.functional.smooth_l1_loss(down, way[:, networks.DOWN], beta=0.1)
        L_turn = torch.nn.functional.mse_loss(turned, batch["turned"].flatten(0, 2))
        loss = L_oil + L_c  # eq. 3, and departures 4 and 8:
        loss = loss + L_end + L_ahead + L_hand + CLOSELY * (L_down + L_turn)
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.nets.parameters(), 10.0)
        self.adam.step()
        metrics = torch.stack([L_oil, L_c, L_end, L_ahead, L_hand, L_down, L_turn]).tolist()
        if not np.isfinite(metrics).all():
            raise FloatingPointError(f"losses are {metrics}: not finite; lower --lr")
        return dict(zip(LOSSES, metrics, strict=True))

    @torch.no_grad()
    def embed(self, library, chunk=64):
        """f of every episode.  [E, 32]"""
        (look, f, _), found, F = self.nets.eval(), [], self.config.frames
        for begin in range(0, len(library), chunk):
            episodes = np.arange(begin, min(begin + chunk, len(library)))
            images = library.image[library.moments(episodes, F).ravel()]
            images = torch.from_numpy(images).to(self.config.device)
            found.append(f(images, look(images)[0], F)[0].cpu().numpy())
        return np.concatenate(found)

    def weights(self):
        parts = [p.detach().cpu().reshape(-1) for p in self.nets.parameters()]
        return torch.cat(parts).numpy()

    def load_weights(self, weights):
        begin = 0
        for p in self.nets.parameters():
            new = torch.from_numpy(np.array(weights[begin : begin + p.numel()])).view_as(p)
            p.data.copy_(new)
            begin += p.numel()

    def state(self):
        return {"nets": self.nets.state_dict(), "adam": self.adam.state_dict()["state"]}

    def load(self, state):
        self.nets.load_state_dict(state["nets"])
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": state["adam"], "param_groups": groups})


LOSSES = ("oil", "contrastive", "end", "ahead", "hand", "down", "turn")


def scaled(pose):
    """What a robot feels of its pose, in units of a step."""
    return (pose - torch.from_numpy(REST).to(pose)) / torch.from_numpy(UNIT).to(pose)


def base(pose, yaw, turned):
    """What means are told from: where the gripper is, a turn towards `turned`, fingers from 0.

    Poses [B, 9], as far as they are known, yaw [B] and turned [B, 2], how it will be where the
    gripper comes down.  [B, 7]
    """
    turn = torch.atan2(turned[:, 1], turned[:, 0]) / 2 - yaw
    turn = (turn + torch.pi / 2) % torch.pi - torch.pi / 2  # jaws are alike
    told = torch.zeros_like(pose[:, :7])
    told[:, :3], told[:, 5] = pose[:, :3], yaw + turn.clamp(-env.Operator.TURN, env.Operator.TURN)
    return told


# --------------------------------------------------------------------------------------------
# Trying: algorithm 1, lines 9 to 16
# --------------------------------------------------------------------------------------------


@torch.no_grad()
def act(agent, images, pose, f, rng):
    """The mean of a likely component, as an absolute pose; is all done?"""
    look, _, policy = agent.nets
    images, pose, f = (torch.from_numpy(x).to(agent.config.device) for x in (images, pose, f))
    known = scaled(pose), f, torch.zeros_like(pose[:, 0])  # looked at closely as it stands
    (logits, means, _), end, _, (_, turned) = policy(images, look(images)[1], *known)
    # by the squares of their weights: departure 3
    chance = (2 * logits).softmax(1).cumsum(1)[:, :-1].cpu().numpy()
    drawn = (chance < rng.random((len(chance), 1))).sum(1)
    move = means[torch.arange(len(means)), torch.from_numpy(drawn)]
    action = base(pose, pose[:, 5], turned) + torch.from_numpy(REACH).to(pose) * move
    return action.cpu().numpy(), (end > SURE).cpu().numpy()


def attempt(agent, world, f, rng, stop=None, back=False):
    """Every robot acts on its embedding, until it says that it is done; goes home first, if `back`.

    Episodes, or None if `stop` is asked for; each with what it has achieved at its end, since it
    was home, and the first step after which that was so.
    """
    if agent.config.method == "bc":
        f = np.zeros_like(f)
    left = np.full(world.n, MORE)  # steps that it takes once it says so
    length, before = np.zeros(world.n, int), world.pose()
    states, actions, told, achieved = [world.get_state()], [], world.pose()[:, 6], []
    while len(ids := np.flatnonzero((left > 0) & (length < world.horizon))):
        if stop and stop.asked:
            return None
        world.judge_anew(np.flatnonzero(back & (length == BACK)))
        pose = world.pose()
        action = pose.copy()
        action[ids], done = act(
            agent, world.pixels(ids), felt(pose, before, told)[ids], f[ids], rng
        )
        env.check(np.isfinite(action).all(), "actions are not finite: train with a lower --lr")
        homeward = back & (length < BACK)
        low = pose[:, 2] < HOME[2] - REACH[2]
        way = np.clip(HOME - pose, -REACH, REACH)
        way[low, :2] = 0  # straight up at first
        action[homeward] = (pose + way)[homeward]
        action = np.clip(action, world.low, world.high).astype(np.float32)
        world.step(action, ids)  # who is done stays as it is
        length[ids] += 1
        left[ids] -= (done | (left[ids] < MORE)) & ~homeward[ids]
        before, told = pose, action[:, 6]
        states.append(world.get_state())
        actions.append(action)
        achieved.append(world.achieved() & ~homeward[:, None])
    states, actions, achieved = (np.stack(rows, 1) for rows in (states, actions, achieved))
    since = (achieved >= achieved[:, -1:]).all(2).argmax(1) + 1
    return [
        {"states": states[i, : length[i] + 1], "actions": actions[i, : length[i]],
         "scene": world.tasks[i].scene, "achieved": achieved[i, -1], "since": since[i]}
        for i in range(world.n)
    ]  # fmt: skip


class Collector:
    """Tries what demonstrations show, a chunk of trials at a time, each chunk a file.

    What a chunk holds depends on seed, round and number alone, not on who made it: chunks that
    are there need not be made again.
    """

    def __init__(self, config, number, folder, board, life, iteration, scenes, f):
        """`scenes` and embeddings `f` of all demonstrations."""
        self.config, self.number, self.board = config, number, board
        self.folder, self.iteration, self.scenes, self.f = folder, iteration, scenes, f
        self.agent = Agent(SimpleNamespace(**vars(config) | {"device": "cpu"}))
        self.agent.load_weights(board.weights)
        every = range(number, chunks(config), max(config.actors, 1))
        self.todo = [c for c in every if not (folder / chunk_name(c)).exists()]
        board.steps[number] = in_chunk(config) * (len(every) - len(self.todo))

    def ready(self):
        return bool(self.todo)

    def step(self):
        """One chunk of trials: who was no use goes home and tries again: departure 14."""
        chunk = self.todo.pop(0)
        config = self.config
        rng = np.random.default_rng((5, config.seed, self.iteration, chunk))
        n, useful, fresh = config.robots, [], np.ones(config.robots, bool)
        world = env.Kitchen(n, int(rng.integers(2**32)), obs="features", size=config.size)
        task = np.zeros(n, int)
        for left in reversed(range(config.tries)):
            other, away = rng.integers(SCENES, size=n), rng.random(n) < config.elsewhere
            drawn = rng.integers(len(self.scenes) // config.per_task, size=n)
            task = np.where(fresh, drawn, task)  # sample training task, and demo d from D_i
            demo = task * config.per_task + rng.integers(config.per_task, size=n)
            scene = np.where(away, other, self.scenes[demo])[fresh]
            world.reset(np.flatnonzero(fresh), [env.Task(int(number), 0) for number in scene])
            trials = attempt(self.agent, world, self.f[demo], rng, back=~fresh)  # τ_n, π(a | o, d)
            fresh = np.array([trial["achieved"].any() for trial in trials])  # F(τ_n)
            useful += [ended(trials[k]) for k in np.flatnonzero(fresh)]
            if not left:  # before all are counted: who is done with them ends the actors
                save_trials(self.folder / chunk_name(chunk), useful)  # add τ_n to R
            self.board.steps[self.number] += n
            self.board.episodes[self.number] += [n, fresh.sum()]


def awake(trial):
    """Without the steps in which nothing moved: who has no memory must not learn to wait."""
    going = (np.abs(np.diff(poses(trial["states"]), axis=0)) > REACH / 30).any(1)
    going[0] |= not going.any()
    states, actions = trial["states"][np.append(going, True)], trial["actions"][going]
    return trial | {"states": states, "actions": actions}


def in_chunk(config):
    return config.robots * config.tries


def chunks(config):
    return -(-config.trials // in_chunk(config))


def chunk_name(number):
    return f"{number:05d}.npz"


def save_trials(path, trials):
    rows = {name: [trial[name] for trial in trials] for name in ("states", "actions")}
    width = {"states": 112, "actions": 7}
    arrays = {name: np.concatenate([*r, np.zeros((0, width[name]))]) for name, r in rows.items()}
    arrays["length"] = np.array([len(trial["actions"]) for trial in trials], np.int64)
    arrays["scene"] = np.array([trial["scene"] for trial in trials], np.int64)
    achieved = np.zeros((len(trials), len(env.SLOTS)), bool)
    achieved[:] = [trial["achieved"] for trial in trials] or achieved
    arrays["achieved"] = achieved
    env.write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def load_trials(path):
    """A chunk's trials; None if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            rows = {name: file[name] for name in file}
    except Exception:  # whatever a damaged file makes numpy stumble over
        return None
    trials, end = [], 0
    for k, steps in enumerate(rows["length"]):
        begin, end = end, end + steps
        states, actions = rows["states"][begin + k : end + k + 1], rows["actions"][begin:end]
        scene, achieved = int(rows["scene"][k]), rows["achieved"][k]
        trials.append({"states": states, "actions": np.float32(actions), "scene": scene,
                       "achieved": achieved})  # fmt: skip
    return trials


# --------------------------------------------------------------------------------------------
# Pairing: algorithm 1, lines 17 to 23
# --------------------------------------------------------------------------------------------


def agreement(f, what, alphas, tasks):
    """How well cosines above α tell episodes of a common task: precision, recall, F1.  [alphas]

    As if of so many tasks: the more there are, the more of two episodes are of different ones.
    """
    cosine, same = f @ f.T, what @ what.T > 0
    unlike = (tasks - 1) / (what.shape[1] - 1)
    upper = np.triu_indices(len(f), 1)
    cosine, same = cosine[upper], same[upper]
    right = np.array([(same & (cosine > alpha)).sum() for alpha in alphas])
    pairs = right + unlike * np.array([(~same & (cosine > alpha)).sum() for alpha in alphas])
    precision, recall = right / np.maximum(pairs, 1), right / max(same.sum(), 1)
    return precision, recall, 2 * right / np.maximum(pairs + same.sum(), 1)


def choose_alpha(f, what, tasks):
    """α by the validation tasks' demonstrations, for trials of so many tasks."""
    alphas = np.arange(0.5, 0.995, 0.01)
    return float(alphas[agreement(f, what, alphas, tasks)[2].argmax()])


def pair(method, f, what, alpha, rng, block=1024):
    """Partners of every trial, up to PARTNERS of them, -1 where there are no more.

    By the cosine of embeddings f (mili), then those most alike; by the tasks that were achieved
    (oracle) or by nothing (random), then any of them.  In no order that matters.
    And what the pairing is worth: how many pairs, which part of them has a task in common, which
    part of all that have is found, which part of those kept has one.
    """
    E, found, right, alike, good_kept = len(f), 0, 0, 0, 0
    partners = np.full((E, min(PARTNERS, E)), -1)
    for begin in range(0, E, block):
        rows = slice(begin, begin + block)
        cosine, same = f[rows] @ f.T, what[rows] @ what.T > 0  # p = f(τ_n)ᵀ f(τ_m)
        good = {"oracle": same, "random": np.ones_like(same)}.get(method, cosine > alpha)
        itself = np.arange(len(good)), np.arange(E)[rows]
        good[itself], same[itself] = False, False
        found, right, alike = found + good.sum(), right + (good & same).sum(), alike + same.sum()
        lot = cosine if method == "mili" else rng.random(good.shape, np.float32)
        lot = np.where(good, lot, -1)
        drawn = np.argpartition(-lot, partners.shape[1] - 1, 1)[:, : partners.shape[1]]
        chosen = np.take_along_axis(lot, drawn, 1)
        good_kept += (np.take_along_axis(same, drawn, 1) & (chosen >= 0)).sum()
        drawn = np.where(chosen >= 0, drawn, -1)
        partners[rows] = -np.sort(-drawn, 1)
    kept = (partners >= 0).sum()
    return partners, {"pairs": found // 2, "precision": right / max(found, 1),
                      "recall": right / max(alike, 1),
                      "kept_precision": good_kept / max(kept, 1)}  # fmt: skip


# --------------------------------------------------------------------------------------------
# A run: algorithm 1
# --------------------------------------------------------------------------------------------


def plan(config):
    """(what, in which round, how many steps): updates, trials, or one pairing."""
    phases = [("bootstrap", 0, config.updates)]
    rounds = 0 if config.method in ("meta", "bc") else config.rounds
    for iteration in range(1, rounds + 1):
        phases.append(("trials", iteration, chunks(config) * in_chunk(config)))
        phases += [("pairs", iteration, 1), ("improvement", iteration, config.retrain)]
    return phases


def length_of(config):
    """Steps of all phases."""
    return sum(length for _, _, length in plan(config))


class Run:
    """One call of `round` is an update, a moment of trials, or a pairing."""

    def __init__(self, config):
        self.config, self.agent = config, Agent(config)
        self.phases = plan(config)
        config.steps = length_of(config)
        self.steps = self.updates = 0
        numbers = chosen_tasks(config.tasks)
        self.episodes = load_demos(config, "train", numbers)
        self.mark = zlib.crc32(np.concatenate([e["states"][:1] for e in self.episodes]))
        self.demos = self.trials = self.partners = self.crew = None
        self.meta = np.zeros(0, np.float32)  # the first policy, once there is one
        self.facts = dict.fromkeys(FACTS, np.nan)
        self.losses, self.since, self.judged, self.looks = np.zeros(len(LOSSES)), 0, {}, {}
        self.folder, self.split = None, "val"

    @property
    def bytes(self):
        """Of images of the demonstrations, and of the trials, at most."""
        frames = sum(len(e["states"]) for e in self.episodes)
        return frames * 3 * self.config.size**2 + (len(self.phases) > 1) * self.budget

    @property
    def budget(self):
        return int(self.config.memory_gb * 1e9)

    def take(self):
        """Images come into shared memory as they are rendered."""

    def start(self, state=None):
        config = self.config
        if state:
            self.load(state)
        elif config.start:
            self.meta = first_policy(config)
            fits = len(self.meta) == len(self.agent.weights())
            env.check(fits, f"--start {config.start}: its first policy is of other networks")
            self.agent.load_weights(self.meta)
            self.steps = config.updates
        self.demos = Library(config, self.episodes, "demonstrations as images")
        return self

    # -- phases

    def where(self):
        """The present phase: what, in which round, its length, and how much of it is done."""
        done = self.steps
        for phase in self.phases:
            if done < phase[2] or phase is self.phases[-1]:
                return *phase, done
            done -= phase[2]

    def progress(self):
        """For a bar: what is done, how much of it, of how much."""
        what, iteration, length, done = self.where()
        return f"{what} {iteration}" if iteration else what, min(done, length), length

    def finished(self):
        return self.steps >= self.config.steps

    def round(self):
        """A moment of the present phase; something to tell, or None."""
        what, iteration, length, done = self.where()
        if what == "trials":
            return self.collect(iteration, length, done)
        if what == "pairs":
            return self.find_pairs(iteration)
        if iteration and self.trials is None:
            self.read_pairs(iteration)
        if done == 0:
            self.agent.begin()
        self.learn(iteration, done / length)
        if self.steps == self.config.updates:
            self.meta = self.agent.weights()
            env.write_atomically(self.folder / "meta.npy", lambda file: np.save(file, self.meta))
        return None

    def learn(self, iteration, progress):
        """One update, from demonstrations and, after trials, from their pairs."""
        config, rng = self.config, np.random.default_rng((4, self.config.seed, self.steps))
        n, k = (config.batch, 0) if iteration == 0 else (
            config.batch - round(config.share * config.batch), round(config.share * config.batch)
        )  # fmt: skip
        both = [self.demos.take(self.demos.moments(self.draw_demos(n, rng), config.frames, rng))]
        if k:
            both.append(
                self.trials.take(self.trials.moments(self.draw_trials(k, rng), config.frames, rng))
            )
        batch = {name: np.concatenate([part[name] for part in both]) for name in both[0]}
        # made anew on the learner's device: image is a tensor from here on, the rest arrays
        batch["image"] = torch.from_numpy(batch["image"]).to(config.device)
        if config.anew == "yes":
            mingle(batch, empty_table(config.size), rng)
            vary(batch, rng)
        batch["hand"] = seen_at(config.size, batch["pose"][..., :3])  # where an image shows it
        misjudge(batch, rng)
        glance(batch, rng)
        self.agent.anneal(progress)
        losses = self.agent.update(batch, len(both[0]["done"]))
        self.losses += list(losses.values())
        self.since, self.updates, self.steps = self.since + 1, self.updates + 1, self.steps + 1

    def draw_demos(self, n, rng):
        """Two demonstrations of each of n tasks.  [n, 2]"""
        what = self.demos.what
        tasks = rng.permutation(what.shape[1])[:n]
        return np.array([rng.permutation(np.flatnonzero(what[:, task]))[:2] for task in tasks])

    def draw_trials(self, n, rng):
        """n trials that have partners, and a partner of each.  [n, 2]"""
        kept = (self.partners >= 0).sum(1)
        first = rng.choice(np.flatnonzero(kept), n)
        return np.stack([first, self.partners[first, rng.integers(kept[first])]], 1)

    # -- trials, and pairs of them

    def trials_folder(self, iteration):
        theirs = iteration == 1 and self.config.start
        return Path(self.config.start if theirs else self.folder) / "trials" / str(iteration)

    def collect(self, iteration, length, done):
        """Let the actors try."""
        config, folder = self.config, self.trials_folder(iteration)
        if self.crew is None:
            for path in (folder / chunk_name(number) for number in range(chunks(config))):
                there = path.exists() and load_trials(path) is not None
                mine = iteration > 1 or not config.start
                env.check(there or mine, f"{path} is missing or damaged: has {config.start} "
                          f"fewer trials than --trials {config.trials}?")  # fmt: skip
                if path.exists() and not there:
                    path.rename(path.with_suffix(".damaged"))
            scenes = np.array([e["scene"] for e in self.episodes])
            aids = (iteration, scenes, self.agent.embed(self.demos))
            self.crew = begin_crew(config, Collector, folder, aids, self.agent.weights())
        before = self.steps - done
        self.steps = before + min(tend(self.crew), length)
        tried, useful = self.crew.board.episodes.sum(0)
        if tried:
            self.facts["useful"] = useful / tried
        if self.steps - before == length:
            self.close()
        return None

    def read_trials(self, iteration):
        """R: all useful trials so far, the newest that --memory_gb holds the images of."""
        config, trials, tried = self.config, [], 0
        for past in range(iteration, 0, -1):
            for number in range(chunks(config)):
                path = self.trials_folder(past) / chunk_name(number)
                more = load_trials(path)
                lost = f"{path} is missing or damaged: restore it, or begin a new run"
                env.check(more is not None, lost)
                trials, tried = trials + more, tried + in_chunk(config)
        env.check(len(trials) > 1, f"of {tried} trials, {len(trials)} did anything useful: begin "
                  "a run that learns longer (--updates) or tries more (--trials)")  # fmt: skip
        ends = np.cumsum([len(t["states"]) for t in trials])
        kept = int((ends * 3 * config.size**2 <= self.budget).sum())
        stay = f"the trials stay, --start {self.folder} takes them over"
        env.check(kept > 1, f"--memory_gb {config.memory_gb} holds {kept} trials; raise it: {stay}")
        return [awake(trial) for trial in trials[:kept]], len(trials), tried

    def find_pairs(self, iteration):
        """Algorithm 1, lines 17 to 23."""
        config = self.config
        trials, useful, tried = self.read_trials(iteration)
        self.trials = None  # those of the iteration before
        self.trials = Library(config, trials, "trials as images")
        alpha = config.alpha
        if not alpha:
            f, library = self.look_at("val")
            alpha = choose_alpha(f, library.what, config.tasks)
        rng = np.random.default_rng((6, config.seed, iteration))
        f = self.agent.embed(self.trials)
        self.partners, worth = pair(config.method, f, self.trials.what, alpha, rng)
        best = (f[:1000] @ f[:1000].T)[np.triu_indices(min(len(f), 1000), 1)].max()
        advice = "no two trials have a task in common: begin a run that tries more (--trials)"
        if config.method == "mili":
            advice = f"no two trials are more alike than α = {alpha:.2f}, the most alike of the "
            advice += f"first have {best:.2f}: lower --alpha; --start {self.folder} takes them over"
        env.check(worth["pairs"] > 0, advice)
        self.facts |= worth | {"alpha": alpha, "useful": useful / tried}
        path = self.folder / f"pairs{iteration}.npz"
        rows = {"partners": self.partners, "f": f}
        env.write_atomically(path, lambda file: np.savez_compressed(file, **rows))
        self.steps += 1
        by = f"α = {alpha:.2f}" if config.method == "mili" else config.method
        return (
            f"{useful:,} of {tried:,} trials were useful, {len(trials):,} are kept; "
            f"{by} makes {worth['pairs']:,} pairs, {100 * worth['precision']:.0f} % "
            f"of them of one task, {100 * worth['recall']:.0f} % of all such; of a trial's most "
            f"alike, {100 * worth['kept_precision']:.0f} %"
        )

    def read_pairs(self, iteration):
        """Go on with pairs that were found before."""
        trials, _, _ = self.read_trials(iteration)
        self.trials = Library(self.config, trials, "trials as images")
        with np.load(self.folder / f"pairs{iteration}.npz", allow_pickle=False) as file:
            self.partners = file["partners"]
        same = f"pairs{iteration}.npz is not of these trials; begin a new run"
        env.check(len(self.partners) == len(self.trials), same)

    # -- how good is it?

    def look_at(self, split):
        """Embeddings of a split's demonstrations, and the demonstrations."""
        if split not in self.looks:
            config, count = self.config, len(env.tasks_of(split))
            episodes = load_demos(config, split, range(count))
            self.looks[split] = Library(config, episodes, f"{split} demonstrations as images")
        return self.agent.embed(self.looks[split]), self.looks[split]

    def evaluate(self, episodes, stop=None):
        """Success on tasks never seen, by family, of the present policy and of the first one."""
        results, now = {}, self.agent.weights()
        for name, weights in (("", now), ("meta_", self.meta)):
            key = (zlib.crc32(weights), episodes, self.split)
            if len(weights) and key not in self.judged:
                self.agent.load_weights(weights)
                self.judged[key] = self.success(episodes, stop)
                self.agent.load_weights(now)
                if self.judged[key] is None:
                    del self.judged[key]
                    return None
            found = self.judged.get(key, {})
            results |= {name + k: found.get(k, np.nan) for k in ("success", *env.FAMILIES)}
        judged = {f"{self.split}_episodes": episodes * len(env.tasks_of(self.split))}
        return results | judged | {"steps": self.steps}

    def success(self, episodes, stop):
        """Of so many episodes of each task, one after another demonstration of it."""
        tasks, config = env.tasks_of(self.split), self.config
        f, _ = self.look_at(self.split)
        f, done = f.reshape(len(tasks), -1, f.shape[1]), []  # [tasks, demonstrations, 32]
        for k in tqdm(range(episodes), "playing", leave=False, disable=episodes < 3):
            world = env.Kitchen(len(tasks), 1_000_003 + k, "features", config.size, tasks=tasks)
            rng = np.random.default_rng((7, k))
            trials = attempt(self.agent, world, f[:, k % f.shape[1]], rng, stop)
            if trials is None:
                return None
            done.append([trial["achieved"][task.slot] for trial, task in zip(trials, tasks)])
        done = np.array(done)  # [episodes, tasks]
        family = np.array([task.family for task in tasks])
        found = {name: done[:, family == name].mean() for name in env.FAMILIES}
        return {"success": np.mean(list(found.values()))} | found

    def row(self):
        """Numbers since the last row."""
        mean = self.losses / self.since if self.since else np.full(len(LOSSES), np.nan)
        self.losses, self.since = np.zeros(len(LOSSES)), 0
        row = {"steps": self.steps, "updates": self.updates}
        return row | dict(zip(LOSSES, mean, strict=True)) | self.facts

    def state(self):
        return {"learners": [{"agent": self.agent.state()}], "mark": self.mark, "meta": self.meta,
                "board": {"steps": np.array([self.steps])}, "updates": self.updates,
                "facts": self.facts, "losses": self.losses, "since": self.since}  # fmt: skip

    def load_policies(self, state):
        same = self.mark == state["mark"]
        env.check(same, f"the run was trained on other demonstrations than {self.config.demos} has")
        self.agent.load(state["learners"][0]["agent"])
        self.meta, self.facts = state["meta"], state["facts"]
        self.steps = int(state["board"]["steps"].sum())

    def load(self, state):
        self.load_policies(state)
        self.updates, self.losses, self.since = (state[k] for k in ("updates", "losses", "since"))

    def close(self):
        if self.crew:
            self.crew.close()
            self.crew = None


FACTS = ("useful", "alpha", "pairs", "precision", "recall", "kept_precision")  # of trials and pairs


def completed(config):
    """The flags, checked."""
    config = SimpleNamespace(**vars(config))
    d4pg.check_flags(config, FLAGS, LIMITS)
    known = config.method in METHODS
    env.check(known, f"--method is {config.method!r}; it is one of {', '.join(METHODS)}")
    tries = config.method not in ("meta", "bc") or not config.start
    env.check(tries, f"--method {config.method} has no trials to take over; leave out --start")
    env.check(config.anew in ("yes", "no"), f"--anew is {config.anew!r}; it is yes or no")
    env.check(config.size % 2 == 0, f"--size is {config.size}; it has to be even")
    good = config.share < 1 and config.batch - round(config.share * config.batch) >= 2
    env.check(good, f"--share {config.share} leaves fewer than two pairs of demonstrations a batch")
    return config


def first_policy(config):
    """Of the run that --start names, if that is one whose trials these flags would have made."""
    try:
        weights = np.load(Path(config.start) / "meta.npy", allow_pickle=False)
        theirs = json.loads((Path(config.start) / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--start {config.start}: no run that has a first policy") from error
    for name in TRIED_WITH:
        same = theirs.get(name) == getattr(config, name)
        env.check(same, f"--start {config.start} has --{name} {theirs.get(name)}; say so here, too")
    return weights


TRIED_WITH = ("tasks", "per_task", "size", "frames", "channels", "components", "anew", "updates",
              "robots", "tries", "elsewhere")  # fmt: skip


def make_missing(config):
    """Make the demonstrations that are not there: of training and validation tasks."""
    config = completed(config)
    wanted = {"train": chosen_tasks(config.tasks), "val": range(len(env.tasks_of("val")))}
    for split, numbers in wanted.items():
        if not all(path.exists() for path in demo_paths(config, split, numbers)):
            folder = env.demo_folder(config.demos, "kitchen", split)
            env.make_demos(folder, "kitchen", split, per_task(config, split))


def make_run(config):
    config = completed(config)
    d4pg.tune(config.threads)
    return Run(config)


def table(folder, config, results):
    """Success by family: of a run, of its first policy, and of what lies beside it in runs/.

    Beside it is what has the same flags, but for the method, was judged when it had taken all its
    steps, and by as many episodes of the same split.
    """
    (judged,) = (name for name in results if name.endswith("_episodes"))
    columns = {config.method: results}
    if config.method != "bc":
        first = {name: results["meta_" + name] for name in ("success", *env.FAMILIES)}
        columns.setdefault("meta", first)
    beside = Path(folder).parent
    for path in sorted([*beside.glob("*/results.json"), *beside.glob("*/eval*.json")]):
        try:
            found = json.loads(path.read_text())
            other = json.loads(path.with_name("config.json").read_text())
        except (OSError, ValueError):
            continue  # whatever else lies there
        without = {config.method, other.get("method")} & {"meta", "bc"}
        free = {*MAY_DIFFER, *(OF_TRIALS if without else ())}
        alike = all(other.get(k) == getattr(config, k) for k in FLAGS if k not in free)
        alike &= "steps" in found and found.get(judged) == results[judged]
        if alike and found["steps"] == length_of(SimpleNamespace(**other)):
            columns.setdefault(other["method"], found)
    methods = [name for name in ("bc", "meta", "random", "mili", "oracle") if name in columns]
    title = f"{results[judged]} episodes of {judged.split('_')[0]} tasks"
    rows = {"all four families": "success"} | {f"    {name}": name for name in env.FAMILIES}
    line = lambda what, cells: f"{what:32}" + "".join(f"{cell:>10}" for cell in cells)
    lines = [line(title, methods)]
    lines += [line(what, (f"{columns[m][k]:.3f}" for m in methods)) for what, k in rows.items()]
    lines.append(line("the paper, all four", (PAPER.get(m, "") for m in methods)))
    if results["steps"] < (whole := length_of(config)):
        lines.append(f"{config.method} after {results['steps']:,} of its {whole:,} steps")
    return lines


PAPER = {"bc": "less", "meta": "0.239", "mili": "0.327", "oracle": "0.337"}
MAY_DIFFER = ("method", "start", "demos", "actors", "threads", "device", "half", "memory_gb",
              "log_every", "eval_every", "eval_episodes")  # fmt: skip
OF_TRIALS = ("rounds", "trials", "tries", "elsewhere", "alpha", "retrain", "share", "robots")
SHOWN = {"success": "success"} | {family: family for family in env.FAMILIES}
