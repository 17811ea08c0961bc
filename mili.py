"""MILI: one-shot imitation that improves by its own trials.

https://arxiv.org/abs/2003.02636: sections II to IV, equations 1 to 3, algorithm 1, and the
comparisons of section V.  The networks of figure 3 are in networks.py, the kitchen in env.py.

    python train.py mili                      demonstrations, training, trials, a table, pictures
    python train.py mili --method meta        meta-imitation; bc, oracle and random likewise

A policy π(a | o, f(d)) sees the camera image o, the gripper's pose, and f(d), the embedding of a
demonstration d: a vector of length 1, similar for similar tasks.  It learns from a few
demonstrations of many tasks, attempts demonstrated tasks in new arrangements, keeps the trials that
did anything useful (the filter F), and pairs trials with similar f: each pair is a new task.

Departures from the paper, and what it leaves open:
 1. Eqs. 1 and 2 are means over a batch, not sums; L_c is the sum divided by the batch's tasks.
 2. Both demonstrations of a pair are cloned, each given the other's embedding, as eq. 2 sums over
    all pairs (the text clones one): twice the signal from images that are encoded anyway.
 3. Actions are absolute poses, as in the paper.  The mixture's means are relative to the gripper's
    position, in units of its largest step; roll, pitch and fingers relative to 0.  Robots take a
    component's mean, drawn in proportion to its squared weight: the likeliest alone would keep one
    in place for good where staying is only slightly likelier than moving.
 4. The policy also predicts whether it is done (the last two frames of a demonstration), as its
    authors' published code can: five steps after it is sure, or after 50 steps, a trial ends.
 5. F asks what is achieved when a trial ends: what was let fall again is not.  Which trials show
    the same task, for the oracle and to tell how many pairs are right: those of the same family
    with the same objects, even in different scenes.
 6. After trials, half of a batch is pairs of demonstrations, half pairs of trials: any trial with
    partners and one of its eight most similar (eq. 2 has any pair), as more of these are right.
    L_c is still trained, on the demonstrations, so that the next round has an embedding to pair
    with (line 24 has eq. 2 alone).  That round pairs all trials anew (line 21 keeps old pairs), and
    shows robots demonstrations, as section IV-B has it (line 21 adds pairs to what is sampled).
 7. α, of 0.5 to 0.99, has the best F1 on pairs of validation demonstrations.  The more tasks, the
    more pairs are wrong: wrong ones are counted as if there were --tasks tasks.  Trials achieve yet
    other tasks: fewer of their pairs are right than this predicts.  --alpha 0.9 is the paper's.
 8. Auxiliary losses teach the policy where to go, as most actions tell only roughly where they
    lead.  Two keypoints are the object that is touched and the one it is brought to, labelled by
    the gripper's path; of a push, by what moved ahead of it and what stands where that stopped, as
    a calibrated camera tells.  From these, three more are found: where the gripper is 5 steps
    later, where it next comes down, and where it ends: a push begins behind one object as seen from
    another, where the image shows nothing.  A crop of the image around the next landing (in
    training, half of them are rotated) tells its exact place and yaw; the mixture's yaw is relative
    to a turn towards that one.  f learns to find the gripper in each frame, and both objects by
    comparing the first frame with the last, as what a push goes to is never near the gripper.
    (Of pushes that were tried again, half of the labels of the latter are over 6 cm off.)
    Networks: departure 5 of networks.py.
 9. Training images are augmented.  Two hundred tasks are easily memorised: where a scene is
    demonstrated with one task alone, the scene identifies the task, and the demonstration is
    ignored.  So static parts of an image are replaced by static parts of others and of the empty
    table, half of the batches are mirrored left to right, three of four have their hues rotated.
10. A demonstration is cloned until its task is done, a trial until all that it achieved is done.
    Later frames look like earlier ones: robots stopped above a button that they had not pressed
    yet, and half of a push's trial came after the push, as the robot did not know it was done.
    f sees no later ones either.  Demonstrations of unseen tasks are cut, too: their rewards tell.
    Four steps after a place are kept: fingers just opened still touch, and may have to withdraw.
    So the world tells more of a trial than F's yes or no: when all was done, and if it was a place.
11. Training poses are noisy; actions are exact, and so is the yaw that turns are relative to: the
    policy learns to correct for being a centimetre off.  Its input also has the finger angle's last
    change and its difference from the command: are the fingers closing, open, or holding something?
12. Of an episode, f sees and cloning uses 8 frames (40 with --preset paper), the first and the last
    (which has the action before it) among them: many episodes in a batch, not many frames of each.
13. Steps in which a trial's gripper stood still are dropped: from them a policy, which remembers
    no more than the last step, would learn to wait.  What it felt after them stays as it was.
14. After a useless trial a script drives the gripper home, in eight of the 50 steps, and it tries
    again with the objects as they are, shown a demonstration of its task drawn anew; after a useful
    try it gets another task.  It has --tries in all, each judged from when it was home, and each is
    one of the B.  Only useful tries are learned from, with their way home, which f sees, too:
    demonstrations do not fail, so a policy trained on them alone knows no way back; and from most
    starts it succeeds always or never, so that without retries useful trials are of what is
    mastered already.
15. Half of the robots (--elsewhere) begin in any training scene, not the demonstrated task's, as
    section IV-B has "new scenes"; algorithm 1, line 12, has the task's own.
16. Meta-imitation is the policy before its trials; behaviour cloning is the same without f(d).
    Both have eq. 3 and all departures that are not about trials; the paper's have eq. 2 and eq. 1.
    `updates_1` in figures/mili.py measures what as many further updates gain on demonstrations
    alone, twice as many a batch: the rest is due to trials.
17. Adam's step size falls to --lr_end of its initial value, gradients are clipped to norm 10, and
    each training phase goes on from the networks of the one before, with a new Adam.
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

# name: (what it is; values in the presets tiny, classroom, paper).  Of the last, frames, channels,
# components, batch, lr and updates are of its authors' published code, for the paper's [20].
FLAGS = {
    "demos": ("folder of demonstrations", "demos", "demos", "demos"),
    "method": ("mili; meta: no trials; bc: neither trials nor f(d); oracle, random: other pairs",)
    + ("mili", "mili", "mili"),
    "start": ("a run whose first policy and first round of trials to reuse", "", "", ""),
    "tasks": ("training tasks with demonstrations, of 520", 8, 200, 200),
    "per_task": ("demonstrations of each task", 2, 4, 4),
    "size": ("side of images, in pixels", 32, 48, 100),
    "frames": ("frames of an episode that f sees and that are cloned", 4, 8, 40),
    "channels": ("channels of the convolutions", 16, 32, 32),
    "components": ("K: Gaussians of the mixture", 2, 10, 20),
    "half": ("convolutions in bfloat16; auto: where faster", "no", "auto", "auto"),
    "batch": ("pairs of episodes in a batch", 8, 24, 8),
    "augment": ("augment training images, departure 9: yes or no",) + ("yes", "yes", "no"),
    "lr": ("learning rate", 1e-3, 1e-3, 5e-4),
    "lr_end": ("each phase's final learning rate, as a fraction of --lr", 0.05, 0.05, 1.0),
    "beta": ("β: margin of the contrastive loss", 1.0, 1.0, 1.0),
    "updates": ("updates on demonstrations alone", 500, 3_000, 5_000),
    "rounds": ("rounds of trials", 1, 1, 1),
    "trials": ("B: tries a round, in whole chunks of --robots times --tries", 144, 6_000, 60_000),
    "tries": ("tries of each robot: of one task until one is useful, then of another", 1, 3, 1),
    "elsewhere": ("chance of a robot to begin in any scene, not the demonstrated", 0.0, 0.5, 0.5),
    "alpha": ("α: cosine above which trials are paired; 0: best on validation tasks",)
    + (0.3, 0.0, 0.9),
    "retrain": ("updates on demonstrations and trials, after each round", 100, 2_500, 5_000),
    "share": ("fraction of a batch that is trials, after a round; 0: nothing is tried",)
    + (0.5, 0.5, 0.5),
    "memory_gb": ("memory for trials' images; trials beyond it are left out", 1.0, 6.0, 32.0),
    "actors": ("processes that try and render; 0: one process does all in turn", 0, 2, 16),
    "robots": ("robots of each actor that try at once", 12, 50, 50),
    "seed": ("random seed of training and trials", 0, 0, 0),
    "device": ("device of the learner: cpu or cuda", "cpu", "cpu", "cuda"),
    "threads": ("threads of the learner on a cpu", 1, 2, 2),
    "log_every": ("updates or trials between rows of metrics.csv", 20, 200, 1_000),
    "eval_every": ("updates or trials between evaluations", 200, 2_000, 1_000),
    "eval_episodes": ("episodes of each validation task in an evaluation", 1, 1, 1),
    "validation": ("episodes of each validation task at the end", 1, 10, 10),
}
LIMITS = {
    "tasks": (4, 520), "per_task": (2, 100), "size": (32, 256), "frames": (3, env.LONGEST),
    "components": (1, 100), "lr": (0, 1), "lr_end": (0, 1), "beta": (0, 4), "rounds": (1, 100),
    "tries": (1, 100), "elsewhere": (0, 1), "alpha": (0, 1), "share": (0, 1),
    "memory_gb": (0, 10_000), "actors": (0, 1000), "robots": (1, 1000), "seed": (0, 2**32 - 1),
    "validation": (1, 1000), "eval_episodes": (1, 1000), "batch": (2, 10_000),
}  # fmt: skip
REACH, HOME = env.Kitchen.REACH.astype(np.float32), env.Kitchen.HOME.astype(np.float32)
# the policy's pose input: x, y, z, Euler angles, finger angle, its last change and its error
POSE_OFFSET, POSE_SCALE = np.append(HOME, [0, 0]), np.append(REACH, REACH[[6, 6]])
POSE_NOISE = np.array([0.01, 0.01, 0.01, 0, 0, 0.1, 0.02, 0.02, 0.02])  # σ, m and rad
SOON = 5  # steps ahead: where the gripper is then is a keypoint
KEEP_NEAR = 0.3  # of half the image's width: pixels so close to a keypoint are never replaced
LEAVE_STEPS = 4  # kept after a place, in which the gripper withdraws
MIN_SLIDE = 0.05  # m: a gripper that slides farther along the table is pushing
PUSH_AHEAD = 0.09  # m: rough distance from the gripper to the middle of what it pushes
GOAL_BEYOND = 0.06  # m: from there to the middle of the object that the pushed one meets
DONE_FRAMES = 2  # at the end of an episode, labelled done
STEPS_AFTER_DONE = 5  # that a robot takes from when it says that it is done
DONE_LOGIT = 6.0  # above which it says so: probability 0.998
CROP_WEIGHT = 5.0  # of the crop's losses, L_down and L_turn
MIRROR = {  # signs under a left-right flip
    "pose": np.float32([-1, 1, 1, 1, -1, -1, 1, 1, 1]), "keypoints": np.float32([-1, 1]),
    "action": np.float32([-1, 1, 1, 1, -1, -1, 1]), "turned": np.float32([1, -1]),
}  # fmt: skip
HOME_STEPS = 8  # of the scripted way home before another try
PARTNERS = 8  # kept for each trial: the most similar (random: any)
SCENES = 150  # of training tasks, numbered first


# --------------------------------------------------------------------------------------------
# Episodes: demonstrations, and trials
# --------------------------------------------------------------------------------------------


def chosen_tasks(count):
    """Numbers of the demonstrated training tasks: equally many a family, the same for all seeds."""
    every, rng = env.tasks_of("train"), np.random.default_rng(0)
    numbers = lambda family: [k for k, task in enumerate(every) if task.family == family]
    turns = np.stack([rng.permutation(numbers(family)) for family in env.FAMILIES], 1).ravel()
    return sorted(turns[:count].tolist())


def demo_paths(config, split, numbers):
    """Paths of these tasks' demonstrations, one task after the other."""
    folder, each = env.demo_folder(config.demos, "kitchen", split), per_task(config, split)
    return [folder / f"{task:03d}_{k}.npz" for task in numbers for k in range(each)]


def per_task(config, split):
    """Demonstrations of each task; for evaluation at most four, whatever --per_task."""
    return config.per_task if split == "train" else min(config.per_task, 4)


def load_demos(config, split, numbers):
    """These tasks' demonstrations as episodes, each cut when its task is done."""
    episodes, tasks, slots = [], env.tasks_of(split), np.arange(len(env.SLOTS))
    paths = demo_paths(config, split, numbers)
    advice = env.how_to_make("kitchen", paths[0].parent, per_task(config, split))
    for path in tqdm(paths, f"{split} demonstrations", leave=False, disable=len(paths) < 2_000):
        env.check(path.is_file(), f"{path}: no such file; {advice}")
        demo = env.load_demo(path, "kitchen", ("states", "actions", "rewards"))
        task = tasks[int(path.name[:3])]
        here = (demo["scene"], demo["slot"]) == tuple(task) and demo["rewards"].any()
        env.check(here, f"{path} does not show task {path.name[:3]} of {split}")
        done = {"achieved": slots == task.slot, "done_at": int(demo["rewards"].argmax()) + 1}
        episodes.append(with_pose(cut_when_done(demo | done | {"scene": task.scene})))
    return episodes


def cut_when_done(episode):
    """The episode, cut when all that it achieved is done: departure 10."""
    placed = any(env.SLOTS[slot][0] == "place" for slot in np.flatnonzero(episode["achieved"]))
    T = episode["done_at"] + LEAVE_STEPS * placed
    kept = {"states": episode["states"][: T + 1], "actions": episode["actions"][:T]}
    return kept | {name: episode[name] for name in ("scene", "achieved")}


def with_pose(episode):
    """The episode with what the robot felt in each of its states: pose [T + 1, 9]."""
    pose = poses(episode["states"])
    before, commanded = np.roll(pose, 1, 0), np.append(pose[0, 6], episode["actions"][:, 6])
    before[0] = pose[0]
    return episode | {"pose": proprioception(pose, before, commanded)}


def task_table(episodes):
    """1 where an episode has achieved a task: a family and its objects.  [E, tasks] float32"""
    names = [
        {env.Task(e["scene"], int(slot)).what for slot in np.flatnonzero(e["achieved"])}
        for e in episodes
    ]
    every = sorted(set().union(*names), key=str)
    return np.array([[name in mine for name in every] for mine in names], np.float32)


class Library:
    """All frames of some episodes, one after the other; images in shared memory.

    image [M, H, W, 3], pose [M, 9], action [M, 7], done [M]; keypoints [M, 5, 2] on the table;
    turned [M, 2]: the yaw at the next landing, by `twice`.  first, length: of each episode.  Its
    last frame repeats its last action.
    """

    def __init__(self, config, episodes, title):
        self.episodes, length = episodes, [len(e["states"]) for e in episodes]
        self.length, self.first = np.array(length), np.cumsum([0, *length[:-1]])
        self.tasks = task_table(episodes)
        actions = [np.concatenate([e["actions"], e["actions"][-1:]]) for e in episodes]
        self.action = np.float32(np.concatenate(actions))
        self.pose = np.concatenate([e["pose"] for e in episodes])
        left = np.concatenate([np.arange(n)[::-1] for n in length])
        self.done = np.float32(left < DONE_FRAMES)
        self.image = render(config, [e["states"] for e in episodes], title)
        some = self.first[np.linspace(0, len(self) - 1, min(len(self), 500)).astype(int)]
        home = np.uint8(np.median(self.image[some], 0))  # nearly the empty table, gripper at home
        then, at = [], []
        for e, n in zip(self.first, length, strict=True):
            path = self.pose[e : e + n, :3]
            then.append(e + later_frames(path[:, 2]))
            at.append(touched_and_goal(path, *object_masks(self.image[e : e + n], home)))
        then = np.concatenate(then)
        self.keypoints = np.concatenate([self.pose[then, :2], np.concatenate(at)], 1)
        self.turned = twice(self.pose[then[:, networks.LANDING], 5])

    def __len__(self):
        return len(self.first)

    def moments(self, episodes, frames, rng=None):
        """So many frames of each: first, last, and others evenly, or one at random of each part."""
        part = np.tile(np.linspace(0, 1, frames), (*episodes.shape, 1))  # of the episode
        if rng:
            u = rng.random((*episodes.shape, frames - 2))
            part[..., 1:-1] = (np.arange(frames - 2) + u) / (frames - 2)
        n = self.length[episodes][..., None]
        return self.first[episodes][..., None] + np.minimum((part * n).astype(int), n - 1)

    def take(self, moments):
        names = ("image", "pose", "action", "done", "keypoints", "turned")
        return {name: getattr(self, name)[moments] for name in names}


def twice(yaw):
    """cos 2x and sin 2x of a yaw x: half a turn leaves the jaws the same.  [..., 2]"""
    return np.stack([np.cos(2 * yaw), np.sin(2 * yaw)], -1)


def later_frames(z):
    """For each frame three later ones: SOON steps on, the next landing, the episode's end.

    z [T]: the gripper's height in m.  Frame numbers [T, 3].
    """
    now, end = np.arange(len(z)), len(z) - 1
    down = np.array([*landings(z), end])
    following = np.minimum(np.searchsorted(down, now, side="right"), len(down) - 1)
    return np.stack([np.minimum(now + SOON, end), down[following], np.full_like(now, end)], 1)


def touched_and_goal(path, moved, still, much=0.03):
    """Labels: where the touched object is, and the one that it is brought to.  [T, 2, 2]

    By the gripper's path [T, 3]: its first and its last landing.  If it slides after landing, it
    pushes: the touched object is what has `moved` ahead of it, and the other is what is `still`
    where that must have stopped (masks of the image, [H, W]).
    """
    xy, z = path[:, :2], path[:, 2]
    down = landings(z) or [len(z) - 1]
    rises = np.append(np.flatnonzero(z[down[0] :] > z[down[0]] + much), len(z) - down[0])
    low = down[0] + rises[0] - 1  # the last frame before it first rises
    start, end, way = xy[down[0]], down[-1], xy[low] - xy[down[0]]
    off = np.zeros((2, 2))  # of the two objects from the gripper
    if np.hypot(*way) > MIN_SLIDE:
        way, end = way / np.hypot(*way), low
        off[0] = mean_shift(moved, start + PUSH_AHEAD * way) - start
        beyond = xy[end] + (np.hypot(*off[0]) + GOAL_BEYOND) * way
        off[1] = mean_shift(still, beyond) - xy[end]  # a trial's push may have gone askew
    touched = xy[np.clip(np.arange(len(z)), down[0], end)]  # it moves along from landing to end
    return np.stack([touched + off[0], np.tile(xy[end] + off[1], (len(z), 1))], 1)


def object_masks(images, home, much=24):
    """Pixels that show an object in the first image: those that change, those still at the end."""
    differ = lambda image: np.abs(images[0].astype(int) - image).max(2) > much
    something, changes = differ(home), (images != images[0]).any((0, 3))
    return something & changes, something & ~differ(images[-1])


def mean_shift(mask, point, wide=0.03):
    """Mean shift on the table: the centre of the masked pixels near a point.  [2]"""
    places = env.scene_camera(0, len(mask), False).on_table(len(mask))[mask]  # [pixels, 2]
    for _ in range(5):
        weight = np.exp(-((places - point) ** 2).sum(1) / 2 / wide**2)
        if weight.sum() < 1e-3:
            break
        point = weight @ places / weight.sum()
    return point


def landings(z, much=0.03, near=0.01):
    """Frames at which the gripper lands: the first within `near` of each minimum of its height z.

    Rises of less than `much` do not end a descent.
    """
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


def table_to_image(size, xy):
    """Image coordinates, from -1 to 1, of points [..., 2] on the table.  [..., 2]"""
    return to_image(size, np.concatenate([xy, np.zeros_like(xy[..., :1])], -1))


def to_image(size, points):
    """Image coordinates, from -1 to 1, of points [..., 3].  [..., 2]"""
    return env.scene_camera(0, size, False).project(points)


def poses(states):
    """The gripper's poses in world states.  [M, 7]"""
    return np.float32(states[:, 1:8] / env.Kitchen.JAW)


def proprioception(pose, before, commanded):
    """Pose, last change of the finger angle, its difference from the command.  [M, 9]

    Poses [M, 7], now and a step before; the finger angle [M] that was commanded then.
    """
    fingers = pose[:, 6]
    return np.column_stack([pose, fingers - before[:, 6], fingers - commanded])


def render(config, states, title, chunk=200):
    """Images of episodes' states, rendered by the actors.  [M, size, size, 3]"""
    frames = sum(map(len, states))
    seen = replay.Shared(states=((frames, states[0].shape[1]), np.float64))
    items = replay.Shared(image=((frames, config.size, config.size, 3), np.uint8))
    np.concatenate(states, out=seen.states)
    crew = begin_crew(config, Renderer, items, (seen, chunk))
    try:
        with tqdm(total=frames, desc=title, unit="image", disable=frames < 3_000) as bar:
            done = 0
            while done < frames:
                before, done = done, let_work(crew)
                bar.update(done - before)
    finally:
        crew.close()
    return items.image


class Renderer:
    """Renders every n-th chunk of frames, where there are n actors."""

    def __init__(self, config, number, items, board, life, seen, chunk):
        self.items, self.seen, self.chunk = items, seen, chunk
        self.board, self.number = board, number
        self.world = env.Kitchen(1, obs="features", size=config.size)
        step = chunk * max(config.actors, 1)
        self.todo = list(range(number * chunk, len(seen.states), step))
        board.steps[number] = 0

    def ready(self):
        return bool(self.todo)

    def step(self):
        part = slice(begin := self.todo.pop(0), begin + self.chunk)
        self.items.image[part] = self.world.render(self.seen.states[part])
        self.board.steps[self.number] += len(self.seen.states[part])


def begin_crew(config, actor, items, aids, weights=()):
    """Start the actor processes; with --actors 0, one actor in this process."""
    board = replay.make_board(max(config.actors, 1), max(len(weights), 1), kinds=2)
    board.weights[: len(weights)] = weights
    crew = d4pg.Crew(config, actor, items, board, aids)
    crew.here = crew.begin()
    return crew


def let_work(crew):
    """Let the actors work for a moment; returns how many steps they have done."""
    if crew.here is None:
        crew.supervise()
        time.sleep(0.02)
    elif crew.here.ready():
        crew.here.step()
    return int(crew.board.steps.sum())


def mix_scenery(batch, table, rng):
    """Replace static pixels of each episode by static pixels of another: departure 9.

    Inside a random rectangle, or outside it.  Kept are pixels that change within the episode, and
    those near its landings, end and objects: the object that a push ends at is static.
    """
    images = batch["image"].flatten(0, 1)  # [E, F, H, W, 3]
    (E, _, H, W, _), first, device = images.shape, images[:, 0], images.device
    still = (images == first[:, None]).all(1).all(3)  # [E, H, W]
    y, x = ((torch.arange(n, device=device) + 0.5) / n * 2 - 1 for n in (H, W))
    places = table_to_image(W, batch["keypoints"][..., 1:, :]).reshape(E, -1, 2)  # [E, 4 F, 2]
    px, py = torch.from_numpy(places).to(device)[..., None].unbind(2)
    squared = ((x - px) ** 2)[:, :, None] + ((y - py) ** 2)[..., None]  # [E, 4 F, H, W]
    low, high = torch.from_numpy(np.sort(rng.uniform(-1.3, 1.3, (2, 2, E, 1)), 0)).to(device)
    other_way = torch.from_numpy(rng.random((E, 1, 1)) < 0.5).to(device)
    table = torch.from_numpy(table).to(device)
    inside = ((x > low[0]) & (x < high[0]))[:, None] & ((y > low[1]) & (y < high[1]))[..., None]
    part = still & (squared.amin(1) >= KEEP_NEAR**2) & (inside ^ other_way)
    scenery = torch.where(still[..., None], first, table)
    pairs = scenery.unflatten(0, (-1, 2))  # two donors of different pairs, if there are enough
    shifts = rng.choice(np.arange(1, E // 2), 2, replace=E < 6)
    other = torch.stack([pairs[:, k].roll(int(shifts[k]), 0) for k in (0, 1)], 1).flatten(0, 1)
    anew = torch.where(part[:, None, ..., None], other[:, None], images)
    batch["image"] = anew.view_as(batch["image"])


def empty_table(size):
    """The image of the empty table.  [size, size, 3]"""
    return env.scene_camera(0, size, False).bright.reshape(size, size, 3)


def add_noise(batch, rng):
    """Add noise to the poses, but not to the yaw that turns are relative to: departure 11."""
    batch["yaw"] = batch["pose"][..., 5]
    noise = rng.normal(0, POSE_NOISE, batch["pose"].shape)
    batch["pose"] = batch["pose"] + noise.astype(np.float32)


def mirror_and_recolour(batch, rng):
    """Mirror a batch left to right, rotate its hues, each by chance: departure 9.

    The whole batch alike: hues rotated pair by pair would tell which episodes belong together.
    """
    if rng.random() < 0.5:
        batch["image"] = batch["image"].flip(-2)
        for name, mirror in MIRROR.items():
            batch[name] = batch[name] * mirror
    if rng.random() < 0.75:
        turn = torch.from_numpy(hue_rotation(rng.uniform(0, 2 * np.pi))).to(batch["image"].device)
        batch["image"] = (batch["image"].float() @ turn).round_().clamp_(0, 255).byte()


def rotate_crops(batch, rng):
    """Random rotations of the crops: half of them by any angle, the others by 0."""
    shape = batch["yaw"].shape
    angle = rng.uniform(-np.pi, np.pi, shape) * (rng.random(shape) < 0.5)
    batch["angle"] = angle.astype(np.float32)


def hue_rotation(angle):
    """Hue rotation: a rotation of RGB about the grey axis.  [3, 3]"""
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
    """L_c of pairs of N tasks: the same task attracts, others repel up to the margin β."""
    H = (f_m[:, None] - f_n).square().sum(2)  # ‖f(d_m^j) - f(d_n^k)‖²  [N, N]
    same = torch.eye(len(H), dtype=torch.bool, device=H.device)
    attract, repel = H[same], (beta - H)[~same].clamp(min=0)  # 1(j = k) H + 1(j ≠ k) max(0, β - H)
    return (attract.sum() + repel.sum()) / len(H)


class Agent:
    """The networks f and π, and their optimizer."""

    def __init__(self, config):
        torch.manual_seed(config.seed)
        self.config = config
        device, half, channels = config.device, config.half, config.channels
        look = networks.Convolutions(channels, half)
        f = networks.Embedding(channels, config.frames, config.size)
        table = env.scene_camera(0, config.size, False).on_table(config.size // 2)
        places = torch.from_numpy((table.reshape(-1, 2) - HOME[:2]) / REACH[:2])
        π = networks.Mixture(channels, places, K=config.components)
        self.nets = torch.nn.ModuleList([look, f, π]).to(device, memory_format=torch.channels_last)
        self.begin()

    def begin(self):
        """A new Adam, for a new training phase."""
        learned = [p for p in self.nets.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(learned, lr=self.config.lr)

    def anneal(self, progress):
        """Linear decay of the learning rate; progress goes from 0 to 1."""
        for group in self.adam.param_groups:
            group["lr"] = self.config.lr * (1 - (1 - self.config.lr_end) * progress)

    def update(self, batch, n):
        """One step on eq. 3 and the auxiliary losses.

        Episodes come in pairs: image [N, 2, F, H, W, 3], the rest likewise.  The first n pairs are
        demonstrations, each of a different task.
        """
        config, (look, embed, policy) = self.config, self.nets.train()
        N, _, F = batch["done"].shape
        batch = batch | {"places": table_to_image(config.size, batch["keypoints"])}
        batch = {k: torch.as_tensor(v, device=config.device) for k, v in batch.items()}
        batch = {k: v.flatten(0, 2) for k, v in batch.items()}  # a row a frame: B = 2 N F
        images, pose = batch["image"], batch["pose"]
        coarse, maps = look(images)
        f, (hand, objects) = embed(images, coarse, F)
        f = f.unflatten(0, (N, 2))
        shown = f.flip(1) if config.method != "bc" else 0 * f  # d_m is cloned under f(d_n)
        shown = shown[:, :, None].expand(-1, -1, F, -1).flatten(0, 2)
        out = policy(images, maps, scaled(pose), shown, batch["angle"])
        mixture, end, (heat, offset), (down, turned) = out
        reach = torch.from_numpy(REACH).to(pose)
        move = (batch["action"] - base(pose, batch["yaw"], turned.detach())) / reach
        way = (batch["keypoints"] - pose[:, None, :2]) / reach[:2]
        L_oil = negative_log_likelihood(mixture, move).mean()  # eq. 2
        L_c = contrastive(f[:n, 0], f[:n, 1], config.beta)
        L_end = torch.nn.functional.binary_cross_entropy_with_logits(end, batch["done"])
        L_hand = networks.heatmap_loss(hand, batch["hand"][:, None]).mean()
        at_first = batch["places"][::F, networks.AIMS :]
        L_objects = networks.heatmap_loss(objects, at_first).mean()
        L_keypoints = networks.heatmap_loss(heat, batch["places"]).mean()
        L_keypoints = L_keypoints + torch.nn.functional.smooth_l1_loss(offset, way, beta=0.3)
        L_down = torch.nn.functional.smooth_l1_loss(down, way[:, networks.LANDING], beta=0.1)
        L_turn = torch.nn.functional.mse_loss(turned, batch["turned"])
        loss = L_oil + L_c  # eq. 3, and departures 4 and 8:
        loss = loss + L_end + L_keypoints + CROP_WEIGHT * (L_down + L_turn) + L_hand + L_objects
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.nets.parameters(), 10.0)
        self.adam.step()
        parts = (L_oil, L_c, L_end, L_keypoints, L_down, L_turn, L_hand, L_objects)
        metrics = torch.stack(parts).tolist()
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
        own = list(self.nets.parameters())
        parts = torch.from_numpy(np.array(weights)).split([p.numel() for p in own])
        for p, new in zip(own, parts, strict=True):
            p.data.copy_(new.view_as(p))

    def state(self):
        return {"nets": self.nets.state_dict(), "adam": self.adam.state_dict()["state"]}

    def load(self, state):
        self.nets.load_state_dict(state["nets"])
        groups = self.adam.state_dict()["param_groups"]
        self.adam.load_state_dict({"state": state["adam"], "param_groups": groups})


LOSSES = ("oil", "contrastive", "end", "keypoints", "down", "turn", "hand", "objects")


def scaled(pose):
    """The policy's pose input: relative to HOME, in units of the largest step."""
    return (pose - torch.from_numpy(POSE_OFFSET).to(pose)) / torch.from_numpy(POSE_SCALE).to(pose)


def base(pose, yaw, turned):
    """What the mixture's means are relative to: position, yaw turned towards `turned`, else 0.

    pose [B, 9] is noisy in training, yaw [B] exact; turned [B, 2]: yaw at the landing, by `twice`.
    A turn is as the operator's: TURN at most.  [B, 7]
    """
    turn = torch.atan2(turned[:, 1], turned[:, 0]) / 2 - yaw
    turn = (turn + torch.pi / 2) % torch.pi - torch.pi / 2  # half a turn is none
    reference = torch.zeros_like(pose[:, :7])
    reference[:, :3] = pose[:, :3]
    reference[:, 5] = yaw + turn.clamp(-env.Operator.TURN, env.Operator.TURN)
    return reference


# --------------------------------------------------------------------------------------------
# Trying: algorithm 1, lines 9 to 16
# --------------------------------------------------------------------------------------------


@torch.no_grad()
def act(agent, images, pose, f, rng):
    """The mean of a component drawn at random, as an absolute pose; and whether all is done."""
    look, _, policy = agent.nets
    images, pose, f = (torch.from_numpy(x).to(agent.config.device) for x in (images, pose, f))
    known = scaled(pose), f, torch.zeros_like(pose[:, 0])  # crops are not rotated
    (logits, means, _), end, _, (_, turned) = policy(images, look(images)[1], *known)
    chance = (2 * logits).softmax(1).cumsum(1)[:, :-1].cpu().numpy()  # squared: departure 3
    drawn = (chance < rng.random((len(chance), 1))).sum(1)
    move = means[torch.arange(len(means)), torch.from_numpy(drawn)]
    action = base(pose, pose[:, 5], turned) + torch.from_numpy(REACH).to(pose) * move
    return action.cpu().numpy(), (end > DONE_LOGIT).cpu().numpy()


def rollout(agent, world, f, rng, stop=None, back=False):
    """Roll out the policy, an embedding for each robot, until it says that it is done.

    Robots in `back` are first driven home.  Returns None if `stop` is asked for, else episodes.
    Their `achieved`: what was achieved after coming home, judged at the end; `done_at`: the first
    step after which all of it was.
    """
    if agent.config.method == "bc":
        f = np.zeros_like(f)
    left = np.full(world.n, STEPS_AFTER_DONE)  # steps left, once it says that it is done
    length, before = np.zeros(world.n, int), world.pose()
    states, actions, commanded, achieved = [world.get_state()], [], before[:, 6], []
    while len(ids := np.flatnonzero((left > 0) & (length < world.horizon))):
        if stop and stop.asked:
            return None
        world.judge_anew(np.flatnonzero(back & (length == HOME_STEPS)))
        pose = world.pose()
        action, felt = pose.copy(), proprioception(pose, before, commanded)
        action[ids], done = act(agent, world.pixels(ids), felt[ids], f[ids], rng)
        env.check(np.isfinite(action).all(), "actions are not finite: train with a lower --lr")
        homeward = back & (length < HOME_STEPS)
        way = np.clip(HOME - pose, -REACH, REACH)
        way[pose[:, 2] < HOME[2] - REACH[2], :2] = 0  # straight up at first
        action[homeward] = (pose + way)[homeward]
        action = np.clip(action, world.low, world.high).astype(np.float32)
        world.step(action, ids)  # robots that are done stay as they are
        length[ids] += 1
        said = done | (left[ids] < STEPS_AFTER_DONE)  # now, or before
        left[ids] -= said & ~homeward[ids]
        before, commanded = pose, action[:, 6]
        states.append(world.get_state())
        actions.append(action)
        achieved.append(world.achieved() & ~homeward[:, None])
    states, actions, achieved = (np.stack(rows, 1) for rows in (states, actions, achieved))
    done_at = (achieved >= achieved[:, -1:]).all(2).argmax(1) + 1
    return [
        {"states": states[i, : length[i] + 1], "actions": actions[i, : length[i]],
         "scene": world.tasks[i].scene, "achieved": achieved[i, -1], "done_at": done_at[i]}
        for i in range(world.n)
    ]  # fmt: skip


class Collector:
    """Tries what demonstrations show, in chunks of trials, each a file.

    Besides the policy and the flags, a chunk depends on seed, round and number alone, not on the
    actor: chunks that exist need not be made again.
    """

    def __init__(self, config, number, folder, board, life, iteration, demos, mark):
        """`demos`: every demonstration's `scene` and embedding `f`, shared.  `mark`: Run.who's."""
        self.config, self.number, self.board, self.mark = config, number, board, mark
        self.folder, self.iteration, self.demos = folder, iteration, demos
        self.agent = Agent(SimpleNamespace(**vars(config) | {"device": "cpu"}))
        self.agent.load_weights(board.weights)
        every = range(number, chunks(config), max(config.actors, 1))
        there = [c for c in every if (folder / chunk_name(c)).exists()]
        self.todo, tried = sorted({*every} - {*there}), in_chunk(config) * len(there)
        useful = sum(len(np.load(folder / chunk_name(c))["length"]) for c in there)
        board.steps[number], board.episodes[number] = tried, (tried, useful)

    def ready(self):
        return bool(self.todo)

    def step(self):
        """One chunk of trials: robots whose try was useless go home and try again: departure 14."""
        config, chunk = self.config, self.todo.pop(0)
        rng = np.random.default_rng((5, config.seed, self.iteration, chunk))
        n, R, task, anew = config.robots, [], 0, np.ones(config.robots, bool)
        world = env.Kitchen(n, int(rng.integers(2**32)), obs="features", size=config.size)
        for left in reversed(range(config.tries)):
            other, away = rng.integers(SCENES, size=n), rng.random(n) < config.elsewhere
            drawn = rng.integers(len(self.demos.scene) // config.per_task, size=n)
            task = np.where(anew, drawn, task)  # sample training task, and demo d from D_i
            demo = task * config.per_task + rng.integers(config.per_task, size=n)
            scene = np.where(away, other, self.demos.scene[demo])[anew]
            world.reset(np.flatnonzero(anew), [env.Task(int(number), 0) for number in scene])
            trials = rollout(
                self.agent, world, self.demos.f[demo], rng, back=~anew
            )  # τ_n, π(a | o, d)
            useful = np.array([trial["achieved"].any() for trial in trials])  # F(τ_n)
            R += [cut_when_done(trials[k]) for k in np.flatnonzero(useful)]  # add τ_n to R
            if not left:  # before the count is complete: the learner then ends the actors
                save_trials(self.folder / chunk_name(chunk), R, self.mark)
            self.board.steps[self.number] += n
            self.board.episodes[self.number] += [n, useful.sum()]  # tried, useful
            anew = useful


def without_waiting(trial):
    """Without the steps in which the gripper stood still: departure 13."""
    trial = with_pose(trial)  # of every step: after one that is left out, fingers are at rest
    going = (np.abs(np.diff(trial["pose"][:, :7], axis=0)) > REACH / 30).any(1)
    going[0] |= not going.any()
    kept = {name: trial[name][np.append(going, True)] for name in ("states", "pose")}
    return trial | kept | {"actions": trial["actions"][going]}


def in_chunk(config):
    return config.robots * config.tries


def chunks(config):
    return -(-config.trials // in_chunk(config))


def chunk_name(number):
    return f"{number:05d}.npz"


def save_trials(path, trials, mark):
    """Write a chunk's trials; `mark`: who made them, see Run.who."""
    each = lambda name: [trial[name] for trial in trials]
    widths = {"states": 112, "actions": 7}
    arrays = {k: np.concatenate([*each(k), np.zeros((0, width))]) for k, width in widths.items()}
    arrays["length"] = np.array([len(actions) for actions in each("actions")], np.int64)
    arrays["scene"], arrays["mark"] = np.array(each("scene"), np.int64), np.array(mark)
    arrays["achieved"] = np.array(each("achieved"), bool).reshape(-1, len(env.SLOTS))
    env.write_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def read_arrays(path):
    """A file's arrays; None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # numpy raises all kinds on damaged files
        if env.blameless(error):
            raise
        return None


def load_trials(path, mark=None):
    """A chunk's trials; None if the file is missing, damaged, or made by another than `mark`."""
    rows, trials, end = read_arrays(path), [], 0
    if rows is None or mark not in (None, rows.get("mark")):
        return None
    for k, steps in enumerate(rows["length"]):
        begin, end = end, end + steps
        trials.append({"states": rows["states"][begin + k : end + k + 1],
                       "actions": np.float32(rows["actions"][begin:end]),
                       "scene": int(rows["scene"][k]),
                       "achieved": rows["achieved"][k]})  # fmt: skip
    return trials


# --------------------------------------------------------------------------------------------
# Pairing: algorithm 1, lines 17 to 23
# --------------------------------------------------------------------------------------------


def agreement(f, did, alphas, tasks):
    """F1 of pairing episodes with cosines above each α.  did [E, tasks]: of `task_table`.  [alphas]

    Wrong pairs are scaled to so many tasks: the more there are, the more pairs are of two tasks.
    """
    upper = np.triu_indices(len(f), 1)
    cosine, same = (f @ f.T)[upper], (did @ did.T > 0)[upper]
    unlike = (tasks - 1) / (did.shape[1] - 1)
    right = np.array([(same & (cosine > alpha)).sum() for alpha in alphas])
    pairs = right + unlike * np.array([(~same & (cosine > alpha)).sum() for alpha in alphas])
    return 2 * right / np.maximum(pairs + same.sum(), 1)


def choose_alpha(f, did, tasks):
    """The α, from 0.5, of the best F1 on validation demonstrations, as if of so many tasks."""
    alphas = np.arange(0.5, 0.995, 0.01)
    return float(alphas[agreement(f, did, alphas, tasks).argmax()])


def pair(method, f, did, alpha, rng, block=1024):
    """Up to PARTNERS partners of every trial, -1 for none, and what the pairing is worth.

    Paired are trials whose f has a cosine above α (mili), that achieved a common task (oracle), or
    any (random); kept are the most similar (random: any), in no meaningful order.  Worth: how many
    pairs, part of them with a common task (precision), part of all such pairs that is found
    (recall), precision of the partners kept.
    """
    E, found, right, alike, good_kept = len(f), 0, 0, 0, 0
    partners = np.full((E, min(PARTNERS, E)), -1)
    for begin in range(0, E, block):
        rows = slice(begin, begin + block)
        cosine, same = f[rows] @ f.T, did[rows] @ did.T > 0  # p = f(τ_n)ᵀ f(τ_m)
        good = {"oracle": same, "random": np.ones_like(same)}.get(method, cosine > alpha)
        for table in (good, same):
            np.fill_diagonal(table[:, begin:], False)  # nobody is its own partner
        found, right, alike = found + good.sum(), right + (good & same).sum(), alike + same.sum()
        score = rng.random(good.shape, np.float32) if method == "random" else cosine
        score = np.where(good, score, -2)  # below any cosine
        best = np.argpartition(-score, partners.shape[1] - 1, 1)[:, : partners.shape[1]]
        paired = np.take_along_axis(score, best, 1) > -2
        good_kept += (np.take_along_axis(same, best, 1) & paired).sum()
        partners[rows] = -np.sort(-np.where(paired, best, -1), 1)
    return partners, {"pairs": found // 2, "precision": right / max(found, 1),
                      "recall": right / max(alike, 1),
                      "kept_precision": good_kept / max((partners >= 0).sum(), 1)}  # fmt: skip


# --------------------------------------------------------------------------------------------
# A run: algorithm 1
# --------------------------------------------------------------------------------------------


def trial_pairs(config):
    """How many pairs of a batch are of trials, after a round."""
    return round(config.share * config.batch)


def plan(config):
    """Phases (name, round, steps), where a step is an update, a trial or the one pairing."""
    phases = [("bootstrap", 0, config.updates)]
    rounds = 0 if config.method in ("meta", "bc") else config.rounds
    for iteration in range(1, rounds + 1):
        if trial_pairs(config):
            phases.append(("trials", iteration, chunks(config) * in_chunk(config)))
            phases.append(("pairs", iteration, 1))
        phases.append(("improvement", iteration, config.retrain))
    return phases


def length_of(config):
    """Total steps of all phases."""
    return sum(length for _, _, length in plan(config))


class Run:
    """Algorithm 1; each call of `round` is an update, a moment of trials, or the pairing."""

    def __init__(self, config):
        self.config, self.agent = config, Agent(config)
        self.phases = plan(config)
        config.steps = length_of(config)
        self.steps = self.updates = 0
        self.episodes = load_demos(config, "train", chosen_tasks(config.tasks))
        self.mark = zlib.crc32(np.concatenate([e["states"][:1] for e in self.episodes]))
        self.demos = self.trials = self.partners = self.crew = None
        self.meta = np.zeros(0, np.float32)  # the first policy, once there is one
        self.facts = dict.fromkeys(FACTS, np.nan)
        self.losses, self.since, self.judged, self.libraries = np.zeros(len(LOSSES)), 0, {}, {}
        self.folder, self.split = None, "val"

    @property
    def bytes(self):
        """Most memory that images of demonstrations and trials will take."""
        frames = lambda steps: (steps + 1) * 3 * self.config.size**2
        tries = sum(length for what, _, length in self.phases if what == "trials")
        demos = sum(frames(len(e["actions"])) for e in self.episodes)
        return demos + min(tries * frames(50), self.config.memory_gb * 1e9)  # of 50 steps

    def allocate(self):
        """Nothing to allocate yet: images enter shared memory as they are rendered."""

    def start(self, state=None):
        config = self.config
        if state:
            self.load(state)
        elif config.start:
            self.meta = first_policy(config)
            fits = len(self.meta) == len(self.agent.weights())
            env.check(fits, f"--start {config.start}: its first policy is of other networks")
            self.agent.load_weights(self.meta)
            self.steps, path = config.updates, self.trials_folder(1) / chunk_name(0)
            same = not path.exists() or load_trials(path, self.who()) is not None
            env.check(
                same, f"{path} is damaged, or of other demonstrations than {config.demos} has"
            )
        self.demos = Library(config, self.episodes, "demonstrations as images")
        what, iteration, *_ = self.phase()
        if what == "improvement" and trial_pairs(config):
            self.read_pairs(iteration)
        return self

    # -- phases

    def phase(self):
        """The present phase: its name, round, length, and steps done."""
        done = self.steps
        for phase in self.phases:
            if done < phase[2] or phase is self.phases[-1]:
                return *phase, done
            done -= phase[2]

    def progress(self):
        """For the progress bar: phase, steps done, steps in all."""
        what, iteration, length, done = self.phase()
        return f"{what} {iteration}" if iteration else what, done, length

    def finished(self):
        return self.steps >= self.config.steps

    def round(self):
        """A moment of the present phase; returns a line to print, or None."""
        what, iteration, length, done = self.phase()
        if what == "trials":
            return self.collect(iteration, length, done)
        if what == "pairs":
            return self.find_pairs(iteration)
        if done == 0:
            self.agent.begin()
        self.learn(iteration, done / length)
        if self.steps == self.config.updates:
            self.meta = self.agent.weights()
            env.write_atomically(self.folder / "meta.npy", lambda file: np.save(file, self.meta))

    def learn(self, iteration, progress):
        """One update, on pairs of demonstrations and, after trials, pairs of trials."""
        config, rng = self.config, np.random.default_rng((4, self.config.seed, self.steps))
        k = trial_pairs(config) if iteration else 0
        take = lambda library, pairs: library.take(library.moments(pairs, config.frames, rng))
        both = [take(self.demos, self.draw_demos(config.batch - k, rng))]
        if k:
            both.append(take(self.trials, self.draw_trials(k, rng)))
        batch = {name: np.concatenate([part[name] for part in both]) for name in both[0]}
        # augmented on the learner's device: from here on image is a tensor, the rest arrays
        batch["image"] = torch.from_numpy(batch["image"]).to(config.device)
        if config.augment == "yes":
            mix_scenery(batch, empty_table(config.size), rng)
            mirror_and_recolour(batch, rng)
        batch["hand"] = to_image(config.size, batch["pose"][..., :3])  # as seen: before noise
        add_noise(batch, rng)
        rotate_crops(batch, rng)
        self.agent.anneal(progress)
        losses = self.agent.update(batch, len(both[0]["done"]))
        self.losses += list(losses.values())
        self.since, self.updates, self.steps = self.since + 1, self.updates + 1, self.steps + 1

    def draw_demos(self, n, rng):
        """Two demonstrations of each of n tasks.  [n, 2]"""
        what = self.demos.tasks
        tasks = rng.permutation(what.shape[1])[:n]
        return np.array([rng.permutation(np.flatnonzero(what[:, task]))[:2] for task in tasks])

    def draw_trials(self, n, rng):
        """n random trials that have partners, each with a random one of these.  [n, 2]"""
        kept = (self.partners >= 0).sum(1)
        first = rng.choice(np.flatnonzero(kept), n)
        return np.stack([first, self.partners[first, rng.integers(kept[first])]], 1)

    # -- trials, and pairs of them

    def trials_folder(self, iteration):
        theirs = iteration == 1 and self.config.start
        return Path(self.config.start if theirs else self.folder) / "trials" / str(iteration)

    def who(self):
        """A mark of who tries: of the present policy, and what it has learned from."""
        return zlib.crc32(self.agent.weights(), self.mark)

    def collect(self, iteration, length, done):
        """Let the actors collect trials for a moment."""
        config, folder = self.config, self.trials_folder(iteration)
        if self.crew is None:
            who = self.who()
            fewer = f"has {config.start} fewer trials than --trials {config.trials}?"
            for path in (folder / chunk_name(number) for number in range(chunks(config))):
                there = load_trials(path, who) is not None
                mine = iteration > 1 or not config.start
                lost = f"{path} is missing, damaged, or of other demonstrations: {fewer}"
                env.check(there or mine, lost)
                if path.exists() and not there:
                    path.rename(path.with_suffix(".damaged"))
            scene = np.array([e["scene"] for e in self.episodes])
            demos = replay.share(f=self.agent.embed(self.demos), scene=scene)
            aids = (iteration, demos, who)
            self.crew = begin_crew(config, Collector, folder, aids, self.agent.weights())
        before = self.steps - done
        # Never fewer than before: of a chunk that was interrupted, all tries are to be made again.
        self.steps = max(self.steps, before + let_work(self.crew))
        tried, useful = self.crew.board.episodes.sum(0)
        if tried:
            self.facts["useful"] = useful / tried
        if self.steps - before == length:
            self.close()

    def read_trials(self, iteration):
        """R, newest round first, cut to what --memory_gb holds; of the newest round, how many tries
        were useful, and how many there were."""
        config, trials, tried = self.config, [], chunks(self.config) * in_chunk(self.config)
        for past in range(iteration, 0, -1):
            for number in range(chunks(config)):
                path = self.trials_folder(past) / chunk_name(number)
                more = load_trials(path)
                lost = f"{path} is missing or damaged: restore it, or begin a new run"
                env.check(more is not None, lost)
                trials += more
            if past == iteration:
                useful = len(trials)
        env.check(len(trials) > 1, f"of {tried * iteration} trials, {len(trials)} did anything "
                  "useful: begin a run that learns longer (--updates) or tries more (--trials)"
                  )  # fmt: skip
        ends = np.cumsum([len(t["states"]) for t in trials])
        kept = int((ends * 3 * config.size**2 <= config.memory_gb * 1e9).sum())
        advice = f"--resume {self.folder} with more"
        env.check(kept > 1, f"--memory_gb {config.memory_gb} holds {kept} trials: {advice}")
        return [without_waiting(trial) for trial in trials[:kept]], useful, tried

    def find_pairs(self, iteration):
        """Algorithm 1, lines 17 to 23."""
        config = self.config
        self.trials = None  # frees the previous round's images
        trials, useful, tried = self.read_trials(iteration)
        self.trials = Library(config, trials, "trials as images")
        alpha = config.alpha if config.method == "mili" else np.nan  # others need none
        if alpha == 0:
            f, library = self.look_at("val")
            alpha = choose_alpha(f, library.tasks, config.tasks)
        rng = np.random.default_rng((6, config.seed, iteration))
        f = self.agent.embed(self.trials)
        self.partners, worth = pair(config.method, f, self.trials.tasks, alpha, rng)
        best = (f[:1000] @ f[:1000].T)[np.triu_indices(min(len(f), 1000), 1)].max()
        advice = "no two trials have a task in common: begin a run that tries more (--trials)"
        if config.method == "mili":
            advice = f"no two trials are more alike than α = {alpha:.2f}, of the first 1,000 the "
            advice += f"most alike have {best:.2f}: begin a run with a lower --alpha, such as "
            advice += f"{max(best - 0.05, 0.01):.2f}; the first round's trials stay, --start "
            advice += f"{config.start or self.folder} takes them over"
        env.check(worth["pairs"] > 0, advice)
        self.facts |= worth | {"alpha": alpha, "useful": useful / tried}
        path = self.folder / f"pairs{iteration}.npz"
        env.write_atomically(path, lambda file: np.savez_compressed(file, partners=self.partners))
        self.steps += 1
        by = f"α = {alpha:.2f}" if config.method == "mili" else config.method
        return (
            f"{useful:,} of {tried:,} trials were useful, {len(trials):,} "
            f"{'of all rounds ' if iteration > 1 else ''}are kept; "
            f"{by} makes {worth['pairs']:,} pairs, {100 * worth['precision']:.0f} % "
            f"of them of one task, which are {100 * worth['recall']:.0f} % of all such; of the "
            f"partners that are kept, {100 * worth['kept_precision']:.0f} % show a trial's task"
        )

    def read_pairs(self, iteration):
        """Resume with pairs found before."""
        trials, _, _ = self.read_trials(iteration)
        self.trials = Library(self.config, trials, "trials as images")
        path = self.folder / f"pairs{iteration}.npz"
        pairs = read_arrays(path)
        env.check(pairs, f"{path} is missing or damaged: restore it, or begin a new run")
        self.partners = pairs["partners"]
        same = f"{path} is of another --memory_gb, which has to stay now, or of other trials"
        env.check(len(self.partners) == len(self.trials), same)

    # -- how good is it?

    def look_at(self, split):
        """Embeddings of a split's demonstrations, and these (rendered once)."""
        if split not in self.libraries:
            config, count = self.config, len(env.tasks_of(split))
            episodes = load_demos(config, split, range(count))
            self.libraries[split] = Library(config, episodes, f"{split} demonstrations as images")
        return self.agent.embed(self.libraries[split]), self.libraries[split]

    def evaluate(self, episodes, stop=None):
        """Success by family on unseen tasks: of the present policy, and of the first (meta_)."""
        results, now = {}, self.agent.weights()
        for name, weights in (("", now), ("meta_", self.meta)):
            key = (zlib.crc32(weights), episodes, self.split)
            if len(weights) and key not in self.judged:
                self.agent.load_weights(weights)
                found = self.success(episodes, stop)
                self.agent.load_weights(now)
                if found is None:
                    return None
                self.judged[key] = found
            found = self.judged.get(key, {})
            results |= {name + k: found.get(k, np.nan) for k in ("success", *env.FAMILIES)}
        judged = {f"{self.split}_episodes": episodes * len(env.tasks_of(self.split))}
        return results | judged | {"steps": self.steps}

    def success(self, episodes, stop):
        """Success rates over so many episodes of each task, given its demonstrations in turn."""
        tasks, config = env.tasks_of(self.split), self.config
        f, _ = self.look_at(self.split)
        f, done = f.reshape(len(tasks), -1, f.shape[1]), []  # [tasks, demonstrations, 32]
        for k in tqdm(range(episodes), "playing", leave=False, disable=episodes < 3):
            world = env.Kitchen(len(tasks), 1_000_003 + k, "features", config.size, tasks=tasks)
            rng = np.random.default_rng((7, k))
            trials = rollout(self.agent, world, f[:, k % f.shape[1]], rng, stop)
            if trials is None:
                return None
            done.append([trial["achieved"][task.slot] for trial, task in zip(trials, tasks)])
        done = np.array(done)  # [episodes, tasks]
        family = np.array([task.family for task in tasks])
        found = {name: done[:, family == name].mean() for name in env.FAMILIES}
        return {"success": np.mean(list(found.values()))} | found

    def row(self):
        """Mean losses since the last row, and counts."""
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
        taken, most = self.steps, self.config.steps
        advice = f"{taken:,} steps are taken, these --rounds have {most:,}: raise --rounds"
        env.check(taken <= most, advice)
        self.updates, self.losses, self.since = (state[k] for k in ("updates", "losses", "since"))

    def close(self):
        if self.crew:
            self.crew.close()
            self.crew = None


FACTS = ("useful", "alpha", "pairs", "precision", "recall", "kept_precision")  # of trials and pairs


def completed(config):
    """A copy of the flags, checked."""
    config = SimpleNamespace(**vars(config))
    d4pg.check_flags(config, FLAGS, LIMITS)
    good = config.method not in ("meta", "bc") or not config.start
    env.check(good, f"--method {config.method} has no trials to take over; leave out --start")
    env.check(config.size % 2 == 0, f"--size is {config.size}; it has to be even")
    good = config.batch - trial_pairs(config) >= 2
    env.check(good, f"--share {config.share} leaves fewer than two pairs of demonstrations a batch")
    good = trial_pairs(config) or not config.share
    env.check(good, f"--share {config.share} of --batch {config.batch} is less than a pair")
    good = trial_pairs(config) or config.method not in ("oracle", "random")
    env.check(good, f"--share {config.share} pairs no trials: leave out --method {config.method}")
    good = config.batch <= config.tasks
    env.check(good, f"--batch {config.batch} has a pair of each task: it needs as many --tasks")
    return config


def first_policy(config):
    """The first policy of --start's run, which must have the same flags TRIED_WITH."""
    try:
        theirs = json.loads((Path(config.start) / "config.json").read_text())
        begun_as = theirs.get("start")
        weights = None if begun_as else np.load(Path(config.start) / "meta.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"--start {config.start}: no run that has a first policy") from error
    env.check(not begun_as, f"--start {config.start} goes on from another: --start {begun_as}")
    tried = theirs.get("method") not in ("meta", "bc")
    env.check(tried, f"--start {config.start} is a run without trials; leave it out")
    for name in TRIED_WITH:
        same = theirs.get(name) == getattr(config, name)
        env.check(same, f"--start {config.start} has --{name} {theirs.get(name)}; say so here, too")
    return weights


TRIED_WITH = ("seed", "tasks", "per_task", "size", "frames", "channels", "components", "augment",
              "batch", "lr", "lr_end", "beta", "updates", "robots", "tries",
              "elsewhere")  # fmt: skip


def make_missing(config):
    """Make missing demonstrations of training and validation tasks."""
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


def column(config):
    """What the table calls a run: its method, or updates if it has rounds without trials."""
    untried = config.method not in ("meta", "bc") and not trial_pairs(config)
    return "updates" if untried else config.method


def table(folder, config, results):
    """Success by family: of a run, of its first policy, and of comparable runs beside it in runs/.

    Comparable runs differ in MAY_DIFFER alone (without trials also in OF_TRIALS, without rounds
    also in OF_ROUNDS), are finished, and were evaluated by as many episodes of the same split.
    """
    (judged,) = (name for name in results if name.endswith("_episodes"))
    columns = {(mine := column(config)): results}
    if mine != "bc":
        first = {name: results["meta_" + name] for name in ("success", *env.FAMILIES)}
        columns.setdefault("meta", first)
    beside = Path(folder).parent
    for path in sorted([*beside.glob("*/results.json"), *beside.glob("*/eval*.json")]):
        try:
            found = json.loads(path.read_text())
            other = json.loads(path.with_name("config.json").read_text())
        except (OSError, ValueError):
            continue  # whatever else lies there
        their_flags = SimpleNamespace(**vars(config) | other)
        theirs = column(their_flags)
        untried = {mine, theirs} & {"meta", "bc", "updates"}
        free = {*MAY_DIFFER, *(OF_TRIALS if untried else ())}
        free |= {*OF_ROUNDS} if untried - {"updates"} else set()
        alike = all(other.get(k) == getattr(config, k) for k in FLAGS if k not in free)
        alike &= found.get(judged) == results[judged]
        if alike and found.get("steps") == length_of(their_flags):
            columns.setdefault(theirs, found)
    order = ("bc", "meta", "updates", "random", "mili", "oracle")
    methods = [name for name in order if name in columns]
    title = f"{results[judged]} episodes of {judged.split('_')[0]} tasks"
    rows = {"all four families": "success"} | {f"    {name}": name for name in env.FAMILIES}
    line = lambda what, cells: f"{what:32}" + "".join(f"{cell:>10}" for cell in cells)
    lines = [line(title, methods)]
    lines += [line(what, (f"{columns[m][k]:.3f}" for m in methods)) for what, k in rows.items()]
    lines.append(line("the paper, its test tasks", (PAPER.get(m, "") for m in methods)))
    if results["steps"] < (whole := length_of(config)):
        lines.append(f"{mine} after {results['steps']:,} of its {whole:,} steps")
    return lines


PAPER = {"bc": "less", "meta": "0.239", "mili": "0.327", "oracle": "0.337"}  # 0.239: 0.327 / 1.368
MAY_DIFFER = ("method", "start", "demos", "actors", "threads", "device", "half", "log_every",
              "eval_every", "eval_episodes", "validation")  # fmt: skip
OF_TRIALS = ("trials", "tries", "elsewhere", "alpha", "share", "robots", "memory_gb")
OF_ROUNDS = ("rounds", "retrain")
SHOWN = {"success": "success"} | {family: family for family in env.FAMILIES}
