"""The two worlds, the camera, the demonstrators, demonstration files.

MetaMimic (https://arxiv.org/abs/1810.05017), section 3.1, the environment of figure 2 and the body
and image observations of eq. 2; MILI (https://arxiv.org/abs/2003.02636), section V, the task
families of figure 4, the filter F of section III.

    python train.py look --out look.gif      python -m benchmarks.worlds      env.gym("stack")

Both worlds simulate n robots in one process: observations, rewards and actions are [n, ...].
Physics is MuJoCo's.  A state is a row of numbers from which an episode continues bit for bit, and
a seed repeats an episode, though scripted motions may differ in the last bits between CPU types.

Departures from the papers, and what they leave open:
 1. Stage rewards 0.125, 0.25 and 1 are those of Popov et al. 2017 (same lab, arm and actions); the
    papers give no numbers.  All success predicates are ours: `Stack.stage`, `Kitchen.achieved`.
 2. Stacking episodes have 200 steps by default, for small machines.  The paper's returns (355 and
    285) suggest about 600; with 600, our scripts move more slowly and come near these returns.
 3. The arm is made of primitive shapes; gravity is compensated, as the real controller does;
    fingers 2 and 3 are half as strong and half as stiff, so that a block is not shoved aside; the
    arm does not collide with itself.  An action of 1 is the joint's speed limit, for fingers
    1.2 rad/s.  For speed, physics steps are 5 ms and the contacts' time constant is 10 ms
    (20 ms of the kitchen's objects and table: cans and jars fell over by themselves).
 4. Demonstrators are scripts: "people" A and B, with a position controller and tremor, replace
    humans with a SpaceNavigator, and the kitchen's "operator" replaces a human with a headset.
 5. Cameras are ray casters: no OpenGL, and the same bytes in every process (between CPU types a
    pixel may differ).  Their poses are our choice.
 6. The kitchen is built on MuJoCo, not Bullet, from 16 kinds of kitchenware made of primitives;
    neither code nor scenes of the paper's kitchen are public.  Jaws stay parallel; the finger angle
    is a linkage's: each jaw opens 5 cm per radian.  A step is limited to 6 cm along each axis and
    0.5 rad of each angle.
"""

import copy
import errno
import functools
import importlib
import io
import json
import math
import multiprocessing
import os
import signal
import zipfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np
from mujoco.batch import Batch
from tqdm import tqdm

ASSETS = Path(__file__).parent / "assets"
LONGEST = 10_000  # most steps in an episode
Shape = mujoco.mjtGeom


def check(condition, message):
    """Raise a ValueError unless `condition`; `message` says what is wrong and what was expected."""
    if not condition:
        raise ValueError(message)


def need(module, advice):
    """Import a module that may not be installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(advice) from None


def whole(name, value, low, high):
    """`value` as an int, if it is of an integer type (not bool) and from low to high."""
    good = hasattr(value, "__index__") and not isinstance(value, bool) and low <= value <= high
    check(good, f"{name} is {value!r}; expected a whole number from {low} to {high}")
    return int(value)


# --------------------------------------------------------------------------------------------
# The camera
# --------------------------------------------------------------------------------------------


class Camera:
    """RGB uint8 images by ray casting (`mj_multiRay`), Lambertian shading, no OpenGL.

    Static geoms are cast once.  Each frame casts only the rays that may hit a moving geom: those
    of the pixels under the moving geoms' bounding spheres (for shadows also the lamp's rays).
    """

    AMBIENT, DIFFUSE, SKY = 0.45, 0.65, np.float32([168, 194, 214])

    def __init__(self, model, name, size=64, shadows=False):
        self.size, self.shadows = whole("size", size, 32, 256), shadows
        self.watch(model)
        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        camera = model.camera(name).id
        self.eye, self.lamp = data.cam_xpos[camera].copy(), data.light("lamp").xpos.copy()
        self.axes = data.cam_xmat[camera].reshape(3, 3).copy()  # columns: right, up, backward
        self.half = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)  # half the image, at distance 1
        rays = self._rays(size).reshape(-1, 3)
        self.rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)  # [pixels, 3]
        self._cast_background(data)

    def _rays(self, n):
        """Directions from the eye through the centres of n x n image cells.  [n, n, 3]"""
        middle = ((np.arange(n) + 0.5) / n * 2 - 1) * self.half
        x, y = np.meshgrid(middle, -middle)  # row 0 on top
        return np.stack([x, y, -np.ones_like(x)], -1) @ self.axes.T

    def watch(self, model):
        """Use a model's colours and moving geoms; static geoms must be those of the background."""
        self.model, self.colour = model, 255 * model.geom_rgba[:, :3].astype(np.float32)
        moves = model.body_weldid[model.geom_bodyid] > 0
        self.moving = np.flatnonzero(moves & (model.geom_rgba[:, 3] > 0))

    def _cast_background(self, data):
        """Cast static geoms once: depth, and colour both lit (`bright`) and in shadow (`dark`)."""
        model, self.model = self.model, copy.copy(self.model)
        self.model.geom_rgba[self.moving, 3] = 0  # hidden: `image` casts them in each frame
        geom, depth, normal = self._cast(data, self.eye, self.rays, static=True)
        self.depth = np.where(geom >= 0, depth, np.inf)
        self.ground = np.flatnonzero(geom >= 0)
        geom, points = geom[self.ground], (self.eye + self.rays * depth[:, None])[self.ground]
        self.from_lamp = self._to(points)
        self.bright = np.tile(self.SKY.astype(np.uint8), (self.size**2, 1))
        self.dark = self.bright.copy()
        self.bright[self.ground] = self._shade(data, geom, points, normal[self.ground])
        self.dark[self.ground] = self.AMBIENT * self.colour[geom]
        self.model = model

    def _cast(self, data, origin, rays, static):
        """Geom [R] (-1: none), distance [R] and normal [R, 3] of each ray's first hit."""
        R = len(rays)
        geom, depth, normal = np.empty(R, np.int32), np.empty(R), np.empty(3 * R)
        if R:
            rays = np.ascontiguousarray(rays).reshape(-1)
            mujoco.mj_multiRay(
                self.model, data, origin, rays, None, static, -1, geom, depth, normal, R, 10.0
            )
        return geom, depth, normal.reshape(R, 3)

    def _to(self, points):
        """Unit vectors from the lamp to points, and the distances."""
        rays = points - self.lamp
        distance = np.linalg.norm(rays, axis=1)
        return rays / distance[:, None], distance

    def _shadowed(self, data, rays, distance, static):
        """Does anything stand between the lamp and the points at the rays' ends?  [P] bool"""
        geom, depth, _ = self._cast(data, self.lamp, rays, static)
        return (geom >= 0) & (depth < distance - 1e-3)

    def _shade(self, data, geom, points, normal):
        """Lambert's law: colour (ambient + diffuse cos angle), no diffuse in shadow.  [P, 3]"""
        rays, distance = self._to(points)
        light = self.DIFFUSE * np.maximum(-(normal * rays).sum(1), 0)
        if self.shadows:
            light *= ~self._shadowed(data, rays, distance, static=True)
        return np.minimum(self.colour[geom] * (self.AMBIENT + light)[:, None], 255).astype(np.uint8)

    def _covered(self, data):
        """Pixels that moving geoms may cover: rectangles around their bounding spheres."""
        radius = self.model.geom_rbound[self.moving]
        x, y, z = ((data.geom_xpos[self.moving] - self.eye) @ self.axes).T
        near, far = np.maximum(-z - radius, 1e-3), np.maximum(-z + radius, 1e-3)
        edges = np.stack([-y - radius, y - radius, x - radius, -x - radius])  # [4, spheres]
        edges = np.minimum(edges / near, edges / far) / self.half  # top, -bottom, left, -right
        edges = (edges * [[1], [-1], [1], [-1]] + 1) * self.size / 2
        edges = np.clip(edges + [[0], [1], [0], [1]], 0, self.size).astype(int)
        mask = np.zeros((self.size, self.size), bool)
        for top, bottom, left, right in edges[:, far > 1e-3].T.tolist():
            mask[top:bottom, left:right] = True
        return np.flatnonzero(mask)

    def project(self, points):
        """Image coordinates: right and down, each -1 to 1 in the image.  [..., 2] float32"""
        x, y, z = np.moveaxis((points - self.eye) @ self.axes, -1, 0)
        return np.float32(np.stack([x, -y], -1) / -z[..., None] / self.half)

    def on_table(self, n):
        """Table points (x, y) seen at the centres of n x n image cells.  [n, n, 2] float32"""
        rays = self._rays(n)
        return np.float32((self.eye - rays * (self.eye[2] / rays[..., 2:]))[..., :2])

    def image(self, data):
        """The image of `data`, whose kinematics must be up to date.  [size, size, 3] uint8"""
        pixel = self._covered(data)
        rays, image = self.rays[pixel], self.bright.copy()
        geom, depth, normal = self._cast(data, self.eye, rays, static=False)
        if self.shadows:
            dark = self.ground[self._shadowed(data, *self.from_lamp, static=False)]
            image[dark] = self.dark[dark]
        near = (geom >= 0) & (depth < self.depth[pixel])
        points = self.eye + rays[near] * depth[near, None]
        image[pixel[near]] = self._shade(data, geom[near], points, normal[near])
        return image.reshape(self.size, self.size, 3)


# --------------------------------------------------------------------------------------------
# Physics, for both worlds
# --------------------------------------------------------------------------------------------


class Physics:
    """n simulations of a model on one thread, with their states, seeds and clocks."""

    def __init__(self, model, n, seed, rate, substeps):
        self.n, self.seed = whole("n", n, 1, 100_000), whole("seed", seed, 0, 2**32 - 1)
        self.model, self.rate, self.substeps = model, rate, substeps
        self.batch = Batch(model, self.n, nthread=1, persistent=True)
        self.time, self.qpos, self.qvel = (self.batch.bind(x) for x in ("time", "qpos", "qvel"))
        self.mocap = self.batch.bind("mocap_pos")
        self.scratch = mujoco.MjData(model)  # holds one state at a time, for the camera
        self.motion = 1 + model.nq + 2 * model.nv  # time, qpos, qvel, qacc_warmstart
        self.state_size = self.motion + 3 * model.nmocap
        self.episode = np.zeros(self.n, np.int64)  # episodes begun by each simulation

    def ids(self, ids):
        """Indices of robots, given as indices or as a boolean mask; None: all."""
        if ids is None:
            return np.arange(self.n)
        ids = np.atleast_1d(np.asarray(ids, bool if np.size(ids) == 0 else None))
        mask = ids.dtype == bool and ids.shape in ((0,), (self.n,))
        ids = np.flatnonzero(ids) if mask else ids
        good = ids.ndim == 1 and ids.dtype.kind in "iu" and (ids[1:] > ids[:-1]).all()
        good = good and ((ids >= 0) & (ids < self.n)).all()
        check(good, f"ids are {ids}; expected sorted numbers from 0 to {self.n - 1}, each once")
        return ids

    def begin(self, ids):
        """Count new episodes; return their random generators, independent of other robots."""
        self.episode[ids] += 1
        return [np.random.default_rng((0, self.seed, i, self.episode[i])) for i in ids]

    def get(self, ids=slice(None)):
        """The full state: all that the motion to come depends on.  [k, state_size]"""
        motion = self.batch.state[ids, : self.motion]
        mocap = self.mocap[ids].reshape(len(motion), 3 * self.model.nmocap)
        return np.concatenate([motion, mocap], 1)

    def set(self, states, ids):
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE)
        self.batch.state[ids, : self.motion] = states[:, : self.motion]
        self.mocap[ids] = states[:, self.motion :].reshape(len(ids), self.model.nmocap, 3)
        self.batch.forward(ids)

    def step(self, ctrl, ids=None):
        """Advance, and compute positions, velocities and their sensors at the new state."""
        self.batch.ctrl = ctrl
        self.batch.step(ids, nstep=self.substeps, stage=mujoco.mjtStage.mjSTAGE_VEL)
        bad = self.batch.warning[:, mujoco.mjtWarning.mjWARN_BADQPOS.value :, 1].any(1)  # counts
        if bad.any():
            raise FloatingPointError(f"the physics of robot {np.flatnonzero(bad)[0]} diverged")

    def pictures(self, cameras, states, size):
        """Images of any states, each by its own camera.  [k, size, size, 3] uint8"""
        images = np.empty((len(states), size, size, 3), np.uint8)
        for image, camera, state in zip(images, cameras, states, strict=True):
            self.scratch.qpos = state[1 : 1 + self.model.nq]
            self.scratch.mocap_pos = state[self.motion : self.state_size].reshape(-1, 3)
            mujoco.mj_kinematics(camera.model, self.scratch)
            image[:] = camera.image(self.scratch)
        return images

    @property
    def t(self):
        """Control steps since the episode began.  [n]"""
        return np.rint(self.time * self.rate).astype(int)


def check_states(states, k, size, free):
    """States as float64 [k, size]; impossible ones raise a ValueError.

    `free`: the columns in which the free joints' quaternions begin.
    """
    states, expected = np.asarray(states, np.float64), (k, size)
    check(states.shape == expected, f"states have shape {states.shape}, expected {expected}")
    check(np.isfinite(states).all(), "states hold a NaN or an infinity")
    check((states[:, 0] >= 0).all(), "states hold a time before the start of the episode")
    check((np.abs(states) < 1e6).all(), "states hold numbers beyond a million")
    for column in free:
        norm = np.linalg.norm(states[:, column : column + 4], axis=1)
        good = (np.abs(norm - 1) < 1e-3).all()
        check(good, f"columns {column} to {column + 3} of the states are no unit quaternions")
    return states


def check_actions(actions, n, low, high):
    """Actions as float64 [n, A], refused if they are not finite numbers between low and high."""
    actions, expected = np.asarray(actions, np.float64), (n, len(low))
    check(actions.shape == expected, f"actions have shape {actions.shape}, expected {expected}")
    good = (actions >= low - 1e-6) & (actions <= high + 1e-6)  # false for a NaN, too
    if not good.all():
        i, j = np.argwhere(~good)[0]
        wanted = f"a number in [{low[j]:g}, {high[j]:g}]"
        raise ValueError(f"action {j} of robot {i} is {actions[i, j]}; expected {wanted}")
    return actions


def quaternion(yaw):
    """Unit quaternions of rotations about z.  [..., 4]"""
    zero = np.zeros_like(yaw)
    return np.stack([np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)], -1)


# --------------------------------------------------------------------------------------------
# Stack: the Jaco arm and two blocks (MetaMimic, section 3.1)
# --------------------------------------------------------------------------------------------

REWARDS = {  # task: reward at each stage: none, reach, lift, stack
    "reach": np.array([0, 1, 1, 1.0]),
    "lift": np.array([0, 0.125, 1, 1]),
    "stack": np.array([0, 0.125, 0.25, 1]),
}
HALF = 0.025  # half a block's edge, m


class Stack:
    """n Jaco arms, each with two blocks in front of it: stack the red block on the blue one.

    Actions are nine joint velocities in [-1, 1] at 20 Hz.  Arrays are [n, ...] for all robots, or
    [k, ...] where `ids` selects k of them: sorted numbers or a mask.
    """

    RATE = 20  # control steps a second
    HOME = np.array([4.933, 3.819, 1.202, 3.297, 5.675, 5.088, 0.8, 0.8, 0.8])  # pinch at z = 10 cm
    FEATURES = {  # name: columns
        "joints": slice(0, 9),
        "joint_velocities": slice(9, 18),
        "pinch": slice(18, 21),
        "pinch_velocity": slice(21, 24),
        "block_a": slice(24, 33),  # position; first two columns of its rotation matrix, row by row
        "block_b": slice(33, 42),
        "pinch_to_a": slice(42, 45),
        "pinch_to_b": slice(45, 48),
        "a_to_b": slice(48, 51),
    }

    def __init__(
        self, n=1, seed=0, obs="features", size=64, shadows=False, task="stack", horizon=200
    ):
        check(obs in ("features", "pixels"), f"obs is {obs!r}; it is 'features' or 'pixels'")
        check(task in REWARDS, f"task is {task!r}; it is one of {', '.join(REWARDS)}")
        self.obs, self.task, self.horizon = obs, task, whole("horizon", horizon, 1, LONGEST)
        self.model = mujoco.MjModel.from_xml_path(str(ASSETS / "stack.xml"))
        self.physics = Physics(self.model, n, seed, self.RATE, substeps=10)
        self.n, self.state_size = self.physics.n, self.physics.state_size
        self.camera = Camera(self.model, "front", size, shadows)
        self.low, self.high = -np.ones(9), np.ones(9)
        self.speed = self.model.actuator_ctrlrange[:, 1]  # what an action of 1 commands, rad/s
        batch = self.physics.batch
        self.arm_a, self.a_on_b, self.pinch_velocity = (
            batch.sensor(name).data for name in ("arm_a", "a_on_b", "pinch_velocity")
        )
        self.pinch = batch.site("pinch").xpos
        self.block_a, self.block_b = (  # position, rotation, velocity
            (batch.body(name).xpos, batch.body(name).xmat, batch.joint(name).qvel)
            for name in ("block_a", "block_b")
        )
        self.reset()

    # -- state

    def get_state(self, ids=slice(None)):
        return self.physics.get(ids)

    def set_state(self, states, ids=None):
        """Set robots to given states, from any moment of an episode; returns observations."""
        ids = self.physics.ids(ids)
        self.physics.set(check_states(states, len(ids), self.state_size, (13, 20)), ids)
        return self.observe(ids)

    def reset(self, ids=None):
        """Begin an episode: the arm near HOME, the blocks at random in front of it."""
        ids = self.physics.ids(ids)
        states = np.zeros((len(ids), self.state_size))
        for state, rng in zip(states, self.physics.begin(ids), strict=True):
            state[1:10] = self.HOME + rng.uniform(-0.05, 0.05, 9)
            xy = np.zeros((2, 2))
            while np.linalg.norm(xy[0] - xy[1]) < 0.09:  # so that fingers fit between
                xy = rng.uniform(-0.08, 0.08, (2, 2))
            turns = quaternion(rng.uniform(-np.pi, np.pi, 2))
            state[10:24] = np.concatenate([xy, np.full((2, 1), HALF), turns], 1).ravel()
        return self.set_state(states, ids)

    # -- observations

    def observe(self, ids=slice(None)):
        return self.features(ids) if self.obs == "features" else self.pixels(ids)

    def features(self, ids=slice(None)):
        """Ground-truth features; FEATURES names their columns.  [k, 51] float32"""
        (a, a_turn, _), (b, b_turn, _) = self.block_a, self.block_b
        pinch, a, b = self.pinch[ids], a[ids], b[ids]
        two_columns = lambda turn: turn[ids].reshape(-1, 3, 3)[:, :, :2].reshape(-1, 6)
        parts = (self.body(ids), a, two_columns(a_turn), b, two_columns(b_turn))
        parts += (a - pinch, b - pinch, b - a)
        return np.concatenate(parts, 1, dtype=np.float32, casting="same_kind")

    def body(self, ids=slice(None)):
        """Joint positions and velocities, pinch position and velocity (eq. 2's body).  [k, 24]"""
        qpos, qvel = self.physics.qpos[ids, :9], self.physics.qvel[ids, :9]
        parts = (qpos, qvel, self.pinch[ids], self.pinch_velocity[ids])
        return np.concatenate(parts, 1, dtype=np.float32, casting="same_kind")

    def pixels(self, ids=slice(None)):
        return self.render(self.get_state(ids))

    def render(self, states):
        """Images of any states, a demonstration's for instance.  [k, size, size, 3] uint8"""
        states = check_states(states, len(states), self.physics.state_size, ())
        return self.physics.pictures([self.camera] * len(states), states, self.camera.size)

    # -- steps and rewards

    @property
    def t(self):
        return self.physics.t

    def step(self, actions):
        """Observation, reward, discount (1: a time limit is no termination), last."""
        actions = check_actions(actions, self.n, self.low, self.high)
        self.physics.step(actions * self.speed)
        reward = REWARDS[self.task][self.stage()]
        return self.observe(), reward, np.ones(self.n), self.t >= self.horizon

    def stage(self, ids=slice(None)):
        """The stage at this moment: 0 none, 1 reach, 2 lift, 3 stack.  [k]

        reach: the pinch is within 5 cm of the red block's centre.
        lift: the arm touches the red block, whose lowest corner is over 3 cm above the table.
        stack: the arm does not touch the red block, which lies flat and still on the blue one.
        """
        a, turn, velocity = (part[ids] for part in self.block_a)
        touched = self.arm_a[ids, 0] > 0
        up = np.abs(turn[:, 6:9])  # the world's z in the block's axes
        reach = np.linalg.norm(a - self.pinch[ids], axis=1) < 0.05
        lift = touched & (a[:, 2] - HALF * up.sum(1) > 0.03)  # its lowest corner
        stack = ~touched & (self.a_on_b[ids, 0] > 0) & (np.abs(a[:, 2] - 3 * HALF) < 0.005)
        stack &= np.linalg.norm((a - self.block_b[0][ids])[:, :2], axis=1) < HALF
        stack &= up.max(1) > 0.99  # flat, within 8 degrees
        stack &= np.abs(self.block_b[1][ids, 6:9]).max(1) > 0.99  # and so is the blue one
        stack &= np.linalg.norm(velocity[:, :3], axis=1) < 0.02  # m/s
        stack &= np.linalg.norm(velocity[:, 3:], axis=1) < 0.5  # rad/s
        return np.where(stack, 3, np.where(lift, 2, np.where(reach, 1, 0)))


# --------------------------------------------------------------------------------------------
# The people who demonstrate stacking
# --------------------------------------------------------------------------------------------

# A approaches low from the right, grips once, has a steady hand.  B takes longer: approaches high
# from the left, from farther away, often regrips, trembles.
PEOPLE = ("A", "B")
STYLES = {  # of each; pairs are ranges, from which each episode draws
    "side": ((-20, 60), (150, 240)),  # direction from the block to the first waypoint, degrees
    "reach": ((0.05, 0.09), (0.07, 0.12)),  # its horizontal distance from the block, m
    "arc": ((0.05, 0.08), (0.08, 0.12)),  # height of approach and lift, m
    "speed": ((0.085, 0.27), (0.11, 0.28)),  # m/s
    "care": ((0.031, 0.1), (0.05, 0.12)),  # speed near the blocks, m/s
    "pause": ((0, 5), (0, 6)),  # steps of hesitation
    "regrip": (0.05, 0.4),  # probability of a second grip
    "tremor": (0.003, 0.008),  # scale of velocity noise, m/s
}
HERE, BLOCK_A, BLOCK_B = 0, 1, 2  # anchors; HERE: where the hand was when the waypoint began
OPEN, CLOSED = 0.85, 1.5  # finger angles, rad; CLOSED is beyond the joints' range, to keep pressing


class Person:
    """A scripted demonstrator, in one of two styles, for all robots of a Stack world.

    Each episode has a random script of waypoints (rows of: anchor, x, y, z, finger angle, speed,
    tolerance, frames to stay), tracked by a position controller.  If the block is lost, the
    script starts again.  With a longer horizon, motions are slower.
    """

    def __init__(self, world, style, seed=0):
        check(isinstance(world, Stack), "a Person stacks blocks: give it a Stack world")
        check(style in PEOPLE, f"style is {style!r}; it is one of {', '.join(PEOPLE)}")
        self.world, self.seed, self.number = world, seed, PEOPLE.index(style)
        self.style = {what: of_each[self.number] for what, of_each in STYLES.items()}
        n, self.pace = world.n, max(1, world.horizon / 200) ** 0.95
        self.script = np.zeros((n, 13, 8))
        self.tremor = np.zeros((n, world.horizon + 1, 3))
        self.phase, self.frames = np.zeros(n, int), np.zeros(n, int)
        self.entry, self.yaw = np.zeros((n, 3)), np.zeros(n)
        self.hand = world.model.body("hand").id
        self.hand_turn = world.physics.batch.body("hand").xmat
        self.episode = np.zeros(n, int)  # for which the scripts were drawn
        self.ended = np.zeros(n, bool)
        self.begin()

    def begin(self):
        """Draw scripts for robots that have begun a new episode."""
        ids = np.flatnonzero(self.episode != self.world.physics.episode)
        self.episode[ids] = self.world.physics.episode[ids]
        for i in ids:
            rng = np.random.default_rng((1 + self.number, self.seed, i, self.episode[i]))
            self.script[i] = self._draw_script(rng)
            shake = rng.normal(size=self.tremor[i].shape) * self.style["tremor"] / self.pace**0.2
            for before, now in zip(shake[:-1], shake[1:], strict=True):
                now += 0.9 * before
            self.tremor[i] = shake
        self.phase[ids] = self.frames[ids] = 0
        self.entry[ids] = self.tool()[ids]
        self._choose_yaw(ids)

    def _draw_script(self, rng):
        draw = lambda name: rng.uniform(*self.style[name])
        side, reach, arc, fast, care = map(draw, ("side", "reach", "arc", "speed", "care"))
        fast, care = fast / self.pace, care / self.pace
        pause = lambda: round(draw("pause") * self.pace)
        x, y = reach * np.cos(np.deg2rad(side)), reach * np.sin(np.deg2rad(side))
        regrip = rng.uniform() < self.style["regrip"]
        grip = round(rng.uniform(7, 11))
        return [  # anchor, x, y, z, finger, speed, tolerance, stay
            [BLOCK_A, x, y, arc, OPEN, fast, 0.02, 0],  # approach from the side
            [BLOCK_A, 0, 0, 0.06, OPEN, fast, 0.012, pause()],
            [BLOCK_A, 0, 0, 0.0, OPEN, care, 0.006, pause() // 2],
            [HERE, 0, 0, 0, CLOSED, care, 1, grip],
            [HERE, 0, 0, 0, OPEN if regrip else CLOSED, care, 1, 5 if regrip else 0],
            [HERE, 0, 0, 0, CLOSED, care, 1, grip if regrip else 0],
            [HERE, 0, 0, arc, CLOSED, fast, 0.02, 0],  # lift
            [BLOCK_B, x / 2, y / 2, arc + 0.06, CLOSED, fast, 0.03, 0],  # carry
            [BLOCK_B, 0, 0, 0.075, CLOSED, fast, 0.006, pause()],
            [BLOCK_B, 0, 0, 0.0505, CLOSED, care, 0.003, pause() // 2],
            [HERE, 0, 0, 0, OPEN, care, 1, 7],  # let go
            [HERE, 0, 0, 0.07, OPEN, fast, 0.02, 0],
            [HERE, x, y, arc / 2, OPEN, fast, 0, np.inf],  # retreat and wait
        ]

    def _choose_yaw(self, ids):
        """Choose yaws that align hand and block: with room for the fingers, then the nearest."""
        a, turn, _ = self.world.block_a
        away = (self.world.block_b[0] - a)[ids, :2]
        turn, hand = turn[ids], self.hand_turn[ids]
        faces = np.arctan2(turn[:, 3], turn[:, 0])
        now = np.arctan2(hand[:, 3], hand[:, 0])
        turns = (faces - now + np.pi / 4) % (np.pi / 2) - np.pi / 4  # to the nearest face
        options = now[:, None] + turns[:, None] + [0, np.pi / 2, -np.pi / 2]  # [k, 3]
        # fingers close along the hand's y axis: (-sin yaw, cos yaw)
        along = np.stack([-np.sin(options), np.cos(options)], -1)
        distance = np.linalg.norm(away, axis=1)
        crowded = np.abs((along * away[:, None]).sum(-1)) / np.maximum(distance, 1e-6)[:, None]
        cost = np.abs(options - now[:, None])
        cost += 10 * np.maximum(crowded - 0.6, 0) * (distance[:, None] < 0.13)
        self.yaw[ids] = options[np.arange(len(cost)), cost.argmin(1)]

    def tool(self):
        """The point between the fingertips; the pinch site is 1 cm to one side of it.  [n, 3]"""
        return self.world.pinch - 0.01 * self.hand_turn.reshape(-1, 3, 3)[:, :, 0]

    def act(self):
        """Nine joint velocities for each robot, towards its current waypoint."""
        self.begin()
        world, tool = self.world, self.tool()
        robots = np.arange(world.n)
        a, b = world.block_a[0], world.block_b[0]
        anchor, x, y, z, finger, speed, tolerance, stay = self.script[robots, self.phase].T
        held = (self.phase > 5) & (self.phase < 10)
        lost = held & (np.linalg.norm(a - tool, axis=1) > 0.04)
        missed = (self.phase == 12) & (a[:, 2] < 2 * HALF)
        bases = np.stack([self.entry, a, b])  # by anchor
        goal = bases[anchor.astype(int), robots] + np.stack([x, y, z], 1)
        goal += (anchor == BLOCK_B)[:, None] * (tool - a)  # so block a gets there
        error = goal - tool
        distance = np.linalg.norm(error, axis=1)
        velocity = error * np.minimum(8, speed / np.maximum(distance, 1e-6))[:, None]
        velocity += self.tremor[robots, np.minimum(world.t, world.horizon)]
        actions = self._joint_velocities(velocity, tool, finger)
        self.frames += 1
        self.ended = world.t >= world.horizon
        late = (self.frames > 60 * self.pace) & np.isfinite(stay)
        done = (distance < tolerance) & (self.frames > stay) | late
        self._move_on(np.flatnonzero(done), self.phase[done] + 1)
        again = np.flatnonzero(lost | missed)
        self._move_on(again, 0)
        self._choose_yaw(again)
        return actions

    def _move_on(self, ids, phase):
        self.phase[ids], self.frames[ids] = phase, 0
        self.entry[ids] = self.tool()[ids]

    def _joint_velocities(self, velocity, tool, finger):
        """Damped least squares on the hand's Jacobian, scaled to the joints' speed limits."""
        world = self.world
        turn = self.hand_turn.reshape(-1, 3, 3)
        c, s, zero = np.cos(self.yaw), np.sin(self.yaw), np.zeros(world.n)
        wanted = np.array([[c, -s, zero], [s, c, zero], [zero, zero, zero + 1]]).transpose(2, 0, 1)
        spin = 3.0 * np.cross(turn, wanted, axis=1).sum(2)  # rad/s, towards upright at that yaw
        jacobians = world.physics.batch.jac(self.hand, tool)
        J = np.concatenate(jacobians, 1)[:, :, :6]  # [n, 6, 6]
        twist = np.concatenate([velocity, spin], 1)[:, :, None]
        damped = J @ J.transpose(0, 2, 1) + 1e-4 * np.eye(6)
        joints = (J.transpose(0, 2, 1) @ np.linalg.solve(damped, twist))[:, :, 0]
        arm = joints / world.speed[:6]
        arm /= np.maximum(np.abs(arm).max(1, keepdims=True), 1)
        fingers = 5 * (finger[:, None] - world.physics.qpos[:, 6:9]) / world.speed[6:]
        return np.concatenate([arm, np.clip(fingers, -1, 1)], 1)


# --------------------------------------------------------------------------------------------
# Kitchenware, scenes and tasks (MILI, section V)
# --------------------------------------------------------------------------------------------

SPLITS = ("train", "val", "test")
FAMILIES = ("press", "grasp", "push", "place")
PAIRS = [(i, j) for i in range(3) for j in range(3) if i != j]
SLOTS = (  # the 17 tasks that a scene of three objects and two buttons could have
    [("press", i) for i in range(2)]
    + [("grasp", i) for i in range(3)]
    + [("push", i, j) for i, j in PAIRS]
    + [("place", i, j) for i, j in PAIRS]
)


class Piece(NamedTuple):
    """A piece of kitchenware; its frame's origin is the middle of its bottom."""

    kind: str
    shapes: list  # of (type, position, quaternion, size, rgba)
    grasp: tuple | None  # x, y, z, the angle along which the jaws close, half the gripped width
    room: float  # radius within which another object can be put in or on it; 0: none can
    floor: float  # height at which it then lies
    circles: np.ndarray  # footprint: x, y, radius  [shapes, 3]


class Scene(NamedTuple):
    split: str
    objects: tuple  # indices of three pieces
    buttons: tuple  # indices of two buttons
    named: tuple  # slots of its demonstrated tasks
    allowed: np.ndarray  # which slots are feasible  [17] bool


class Task(NamedTuple):
    scene: int
    slot: int

    @property
    def family(self):
        return SLOTS[self.slot][0]

    @property
    def what(self):
        """The family and its objects: tasks that share these are one task, in any scene."""
        family, *which = SLOTS[self.slot]
        scene = scenes()[self.scene]
        return family, *((scene.buttons if family == "press" else scene.objects)[i] for i in which)


@functools.cache
def tables():
    """tasks.json: pieces (kind, size, proportion, colour), buttons (shape, radius, grey, colour)
    and scenes (split, pieces, buttons, named tasks).  Drawn once at random, then fixed; no piece
    or button of a test scene is in a scene of another split."""
    return json.loads((ASSETS / "tasks.json").read_text())


@functools.cache
def kitchenware():
    """All pieces: a kind's shapes, scaled, and its grey levels, multiplied by a colour."""
    model = mujoco.MjModel.from_xml_path(str(ASSETS / "kitchenware.xml"))
    return [make_piece(model, *row) for row in tables()["pieces"]]


def make_piece(model, kind, size, proportion, colour):
    scale, body = size * np.array([1, 1, proportion]), model.body(kind).id
    shapes, circles = [], []
    for g in np.flatnonzero(model.geom_bodyid == body):
        position, cylinder = model.geom_pos[g] * scale, model.geom_type[g] == Shape.mjGEOM_CYLINDER
        extent = model.geom_size[g] * (scale[[0, 2, 1]] if cylinder else scale)
        rgba = [*np.array(colour) * model.geom_rgba[g, :3], 1]
        shapes.append((model.geom_type[g], position, model.geom_quat[g], extent, rgba))
        turn = np.zeros(9)
        mujoco.mju_quat2Mat(turn, model.geom_quat[g])
        wide = extent[0] if cylinder else np.hypot(*(np.abs(turn.reshape(3, 3)) @ extent)[:2])
        circles.append([*position[:2], wide])
    grasp, room, floor = None, 0.0, 0.0
    for site in np.flatnonzero(model.site_bodyid == body):
        position = model.site_pos[site] * scale
        if model.site_type[site] == Shape.mjGEOM_BOX:
            cos, _, _, sin = model.site_quat[site]  # of half the angle
            grasp = (*position, 2 * np.arctan2(sin, cos), size * model.site_size[site, 0])
        else:
            room, floor = model.site_size[site, 0] * size, position[2]
    return Piece(kind, shapes, grasp, room, floor, np.array(circles))


def can(slot, objects):
    """Is a slot a feasible task with these three pieces?"""
    family, *which = SLOTS[slot]
    if family == "press":
        return True
    a, *b = (kitchenware()[objects[i]] for i in which)
    if family == "grasp":
        return a.grasp is not None
    if family == "push":
        return a.kind not in ("spoon", "spatula")
    slim = a.kind in ("tumbler", "bottle", "can", "jar", "shaker", "carton")
    deep = b[0].kind in ("bowl", "pan")
    return a.grasp is not None and a.room == 0 and b[0].room > 0 and (slim or not deep)


@functools.cache
def scenes():
    """150 + 10 + 10 scenes of training, validation and test tasks."""
    names = {" ".join(map(str, slot)): k for k, slot in enumerate(SLOTS)}
    every = []
    for split, objects, buttons, named in tables()["scenes"]:
        allowed = np.array([can(slot, objects) for slot in range(len(SLOTS))])
        named = tuple(names[name] for name in named)
        every.append(Scene(split, tuple(objects), tuple(buttons), named, allowed))
    return every


def check_task(task):
    number, slot = task
    whole("a task's scene", number, 0, len(scenes()) - 1)
    whole("a task's slot", slot, 0, len(SLOTS) - 1)
    possible = scenes()[number].allowed[slot]
    check(possible, f"{' '.join(map(str, SLOTS[slot]))} makes no sense in scene {number}")
    return Task(int(number), int(slot))


def tasks_of(split):
    """The tasks of a split: 520, 40 or 40, equally many of each family."""
    every = enumerate(scenes())
    return [Task(i, slot) for i, scene in every if scene.split == split for slot in scene.named]


@functools.cache
def scene_model(number):
    """The model of a scene: kitchen.xml with the scene's pieces and buttons."""
    scene = scenes()[number]
    spec = mujoco.MjSpec.from_file(str(ASSETS / "kitchen.xml"))
    for i, piece in enumerate(kitchenware()[o] for o in scene.objects):
        for geom in spec.body(f"object_{i}").geoms[len(piece.shapes) :]:
            geom.size, geom.rgba, geom.mass = [0.001] * 3, [0] * 4, 0
            geom.contype, geom.conaffinity = 8, 0  # inert; kept, as model sizes must agree
        for geom, shape in zip(spec.body(f"object_{i}").geoms, piece.shapes, strict=False):
            geom.type, geom.pos, geom.quat, geom.size, geom.rgba = shape
    for i, button in enumerate(scene.buttons):
        shape, radius, grey, colour = tables()["buttons"][button]
        cap, inside = spec.geom(f"cap_{i}"), radius + 0.001  # half the width between walls
        cap.rgba, cap.size = [*colour, 1], [radius, 0.008, 0]
        if shape == "square":
            cap.type, cap.size = Shape.mjGEOM_BOX, [radius, radius, 0.008]
        for wall in spec.body(f"button_{i}").geoms:  # pinwheel: each ends at the next
            wall.pos[:2] = (0.03 + inside) / 2, (inside - 0.03) / 2
            wall.size[:2] = (0.03 - inside) / 2, (0.03 + inside) / 2
            wall.rgba = [grey, grey, grey, 1]
    return spec.compile()


# --------------------------------------------------------------------------------------------
# Kitchen: a free gripper on a table (MILI, section V)
# --------------------------------------------------------------------------------------------


MEMORY = 18  # numbers of a state by which success is judged; the last is the scene's index


class Kitchen:
    """n grippers, each in the scene of its own task.

    Actions are absolute poses at 10 Hz: x, y, z (m), Euler angles (rad) and the finger angle (rad,
    0 is closed).  A step's target is clipped to within REACH of the present pose, number by number.
    """

    RATE = 10  # control steps a second
    HOME = np.array([0, -0.06, 0.2, 0, 0, 0, 0.6])
    REACH = np.array([0.06, 0.06, 0.06, 0.5, 0.5, 0.5, 0.5])  # most per step: m, rad
    JAW = np.array([1, 1, 1, 1, 1, 1, 0.05])  # each jaw opens 5 cm per rad
    LOOKS = 2  # contact checks per step, as contacts may be brief
    DEPTH = 0.009  # m of the caps' 12 mm of travel, beyond which a button counts as pressed

    def __init__(self, n=1, seed=0, obs="pixels", size=64, shadows=False, tasks=None, horizon=50):
        check(obs in ("features", "pixels"), f"obs is {obs!r}; it is 'features' or 'pixels'")
        self.obs, self.horizon = obs, whole("horizon", horizon, 1, 50)
        self.size, self.shadows = whole("size", size, 32, 256), shadows
        self.physics = Physics(scene_model(0), n, seed, self.RATE, substeps=20 // self.LOOKS)
        self.low, self.high = scene_model(0).actuator_ctrlrange.T / self.JAW
        self.n = n = self.physics.n
        self.tasks = [Task(0, 0)] * n
        self.allowed = np.zeros((n, len(SLOTS)), bool)  # which slots are feasible in its scene
        self.room = np.zeros((n, 3))  # of each object, for others on it
        self.memory = np.zeros((n, MEMORY))  # of the episode, to judge success
        self.start, self.rise = self.memory[:, :9], self.memory[:, 9:12]
        self.depth, self.touched = self.memory[:, 12:14], self.memory[:, 14:17]  # -1: not parted
        self.state_size = self.physics.state_size + MEMORY
        bind, first = self.physics.batch.bind, scene_model(0).body("object_0").id
        self.place = bind("xpos")[:, first : first + 3]  # objects' positions  [n, 3, 3]
        self.turn = bind("xmat")[:, first : first + 3]
        self.contacts = bind("sensordata").reshape(n, 5, 3, 2)  # count, distance
        self.buttons = self.physics.mocap  # their positions  [n, 2, 3]
        self.reset(tasks=tasks_of("train")[:1] * n if tasks is None else tasks)

    # -- state

    def get_state(self, ids=slice(None)):
        return np.concatenate([self.physics.get(ids), self.memory[ids]], 1)

    def set_state(self, states, ids=None):
        ids = self.physics.ids(ids)
        states = check_states(states, len(ids), self.state_size, (12, 19, 26))
        for i, number in zip(ids, states[:, -1], strict=True):
            here = f"robot {i} stands in scene {self.tasks[i].scene}: reset it to a task there"
            check(number == self.tasks[i].scene, f"a state of scene {number:g}, but {here}")
        self.physics.set(states[:, :-MEMORY], ids)
        self.memory[ids] = states[:, -MEMORY:]
        return self.observe(ids)

    def reset(self, ids=None, tasks=None):
        """Begin an episode of the same tasks or of the given ones, in their scenes."""
        ids = self.physics.ids(ids)
        if tasks is not None:
            check(len(tasks) == len(ids), f"{len(tasks)} tasks for {len(ids)} robots")
            tasks = [check_task(task) for task in tasks]
            for i, task in zip(ids, tasks, strict=True):
                scene = scenes()[task.scene]
                self.tasks[i], self.allowed[i] = task, scene.allowed
                self.room[i] = [kitchenware()[thing].room for thing in scene.objects]
            self.physics.batch.set_models([scene_model(task.scene) for task in self.tasks])
        states = np.zeros((len(ids), self.state_size))
        for i, state, rng in zip(ids, states, self.physics.begin(ids), strict=True):
            xy, yaw = arrange(self.tasks[i].scene, rng)
            pose = (self.HOME + rng.uniform(-0.02, 0.02, 7)) * self.JAW
            state[1:9] = [*pose, pose[6]]
            state[9:30] = np.concatenate([xy[:3], np.zeros((3, 1)), quaternion(yaw)], 1).ravel()
            state[self.physics.motion : -MEMORY].reshape(2, 3)[:, :2] = xy[3:]
            state[-MEMORY:-9].reshape(3, 3)[:, :2] = xy[:3]
            state[-1] = self.tasks[i].scene
        return self.set_state(states, ids)

    # -- observations

    def observe(self, ids=slice(None)):
        return self.features(ids) if self.obs == "features" else self.pixels(ids)

    def pose(self, ids=slice(None)):
        """x, y, z, Euler angles, finger angle.  [k, 7] float32"""
        return (self.physics.qpos[ids, :7] / self.JAW).astype(np.float32)

    body = pose  # counterpart of Stack.body

    def touching(self, ids=slice(None)):
        """Contact, or a gap below 1 mm, as contacts flicker: [k, 5, 3] bool.

        Rows: gripper, left jaw, right jaw, table with each object; then pairs 0-1, 0-2, 1-2.
        """
        count, distance = np.moveaxis(self.contacts[ids], -1, 0)
        return (count > 0) & (distance < 1e-3)

    def features(self, ids=slice(None)):
        """Ground-truth features.  [k, 51] float32

        The pose (7); of the three objects the positions (9), first two columns of their rotation
        matrices, row by row (18), positions from the gripper (9); buttons from the gripper (6); how
        far their caps are down, in m (2).
        """
        tool = self.physics.qpos[ids, None, :3]
        place, turn = self.place[ids], self.turn[ids].reshape(-1, 3, 3, 3)[..., :2]
        caps = self.physics.qpos[ids, 29:]
        parts = (place, turn, place - tool, self.buttons[ids] - tool, caps)
        flat = [part.reshape(len(place), math.prod(part.shape[1:])) for part in parts]
        return np.concatenate([self.pose(ids), *flat], 1, dtype=np.float32, casting="same_kind")

    def pixels(self, ids=slice(None)):
        return self.render(self.get_state(ids))

    def render(self, states):
        """Images of any states, each in its scene (its last number).  [k, size, size, 3] uint8"""
        states = check_states(states, len(states), self.state_size, ())
        numbers = states[:, -1].astype(int)
        good = ((numbers >= 0) & (numbers < len(scenes()))).all()
        check(good, f"states are of scenes {numbers}; there are {len(scenes())}")
        cameras = [scene_camera(int(number), self.size, self.shadows) for number in numbers]
        return self.physics.pictures(cameras, states, self.size)

    # -- steps and rewards

    @property
    def t(self):
        return self.physics.t

    def step(self, actions, ids=None):
        """Observation, reward (1 while the robot's task counts as done), discount, last.

        With `ids`, only these robots advance.
        """
        actions = check_actions(actions, self.n, self.low, self.high)
        pose = self.physics.qpos[:, :7] / self.JAW
        near = pose + np.clip(actions - pose, -self.REACH, self.REACH)
        ctrl = np.clip(near, self.low, self.high) * self.JAW
        ids = self.physics.ids(ids)
        for _ in range(self.LOOKS):
            self.physics.step(ctrl, ids)
            before, touch = self.touched[ids], self.touching(ids)[:, 4]
            self.touched[ids] = np.where((before < 0) & touch, -1, np.maximum(before, touch))
        rise = self.place[ids, :, 2] - self.start[ids, 2::3]
        self.rise[ids] = np.maximum(self.rise[ids], rise)
        self.depth[ids] = np.maximum(self.depth[ids], self.physics.qpos[ids, 29:])
        reward = self.succeeded().astype(float)
        return self.observe(), reward, np.ones(self.n), self.t >= self.horizon

    def achieved(self, ids=slice(None)):
        """Which slots has the episode achieved, judged as if it ended now?  [k, 17]

        press: the cap was down when some step ended (its walls leave the gripper 5 mm of play).
        grasp: both jaws touch it, but no table and no object, and it is 5 cm above where it lay.
        push: it slid by over 4 cm, never rose by 3, and touched the other, which moved less.
        place: it rose by 3 cm, is let go, lies still on the other, in its `room`, off the table.
        An object's height is that of the middle of its foot: what falls over rises, too.
        """
        held, left, right, table, touch = self.touching(ids).swapaxes(0, 1)
        place, start = self.place[ids], self.start[ids].reshape(-1, 3, 3)
        rise, touched = self.rise[ids], self.touched[ids] > 0
        moved = np.linalg.norm((place - start)[:, :, :2], axis=2)
        velocity = self.physics.qvel[ids, 8:26].reshape(-1, 3, 6)
        still = np.linalg.norm(velocity[:, :, :3], axis=2) < 0.05
        slots = [*(self.depth[ids] > self.DEPTH).T]
        free = ~table & ~(touch @ np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], bool))
        slots += [*(left & right & free & (place[:, :, 2] - start[:, :, 2] > 0.05)).T]
        for i, j in PAIRS:
            slid = (moved[:, i] > 0.04) & (rise[:, i] < 0.03) & (moved[:, j] < moved[:, i])
            slots.append(slid & touched[:, i + j - 1])
        for i, j in PAIRS:
            apart = np.linalg.norm((place[:, i] - place[:, j])[:, :2], axis=1)
            rests = touch[:, i + j - 1] & ~table[:, i] & ~held[:, i] & still[:, i]
            slots.append(rests & (apart < self.room[ids, j]) & (rise[:, i] > 0.03))
        return np.stack(slots, 1) & self.allowed[ids]

    def judge_anew(self, ids):
        """Judge these episodes as if they began now: what was done before no longer counts.

        Of objects that touch already a push is none, until they have parted.
        """
        self.start[ids] = self.place[ids].reshape(-1, 9)
        self.rise[ids] = self.depth[ids] = 0
        self.touched[ids] = np.where(self.touching(ids)[:, 4], -1, 0)

    def succeeded(self):
        """Has each robot done its own task?  [n]"""
        return self.achieved()[np.arange(self.n), [task.slot for task in self.tasks]]

    def useful(self, ids=slice(None)):
        """The paper's filter F: has the episode achieved any slot?  [k]"""
        return self.achieved(ids).any(1)


@functools.cache
def scene_camera(number, size, shadows):
    """The camera of a scene; all share one background, the empty table."""
    if number == 0:
        return Camera(scene_model(0), "front", size, shadows)
    camera = copy.copy(scene_camera(0, size, shadows))
    camera.watch(scene_model(number))
    return camera


def arrange(number, rng, tries=32):
    """Random positions of a scene's objects and buttons, [5, 2], and the objects' yaws, [3].

    All are in sight and 3 cm apart; the two objects of a push are 6 cm apart, its path is free.
    One by one, each gets the first valid of `tries` random poses; if none is, all are redrawn.
    """
    scene = scenes()[number]
    prints = [kitchenware()[o].circles for o in scene.objects] + [np.array([[0, 0, 0.043]])] * 2
    push = [k for slot in scene.named if SLOTS[slot][0] == "push" for k in SLOTS[slot][1:]]
    order = push + [k for k in range(5) if k not in push]
    while True:
        xy = rng.uniform([-0.19, -0.15], [0.19, 0.18], (5, tries, 2))
        yaw = rng.uniform(-np.pi, np.pi, (5, tries))
        placed, pick = {}, np.zeros(5, int)
        for k in order:
            circles = turned(prints[k], xy[k], yaw[k])
            good = (np.abs(circles[..., :2] - [0, 0.015]) < [0.23, 0.19]).all((1, 2))
            for other in placed:
                good &= gap(circles, placed[other]) > (0.06 if k in push else 0.03)
            if push and k == push[1]:  # room for the gripper behind the pushed one
                origin, back = xy[push[0], pick[push[0]]], reach(prints[push[0]]) + 0.05
                way = xy[k] - origin
                way /= np.linalg.norm(way, axis=1, keepdims=True)
                start = origin - back * way
                good &= (np.abs(start - [0, 0.015]) < 0.23).all(1)
            elif push and k not in push:
                good &= aside(circles, start[pick[push[1]]], way[pick[push[1]]]) > 0.045
            pick[k] = good.argmax()
            if not good[pick[k]]:
                break
            placed[k] = circles[pick[k]]
        else:
            return xy[range(5), pick], yaw[range(3), pick[:3]]


def reach(circles):
    """Horizontal distance from a piece's origin to its farthest point."""
    return (np.hypot(*circles[:, :2].T) + circles[:, 2]).max()


def turned(circles, xy, yaw):
    """A footprint's circles at many poses.  [tries, circles, 3]"""
    c, s, (x, y, radius) = np.cos(yaw)[:, None], np.sin(yaw)[:, None], circles.T
    x, y = c * x - s * y + xy[:, :1], s * x + c * y + xy[:, 1:]
    return np.stack([x, y, np.broadcast_to(radius, x.shape)], -1)


def gap(circles, other):
    """Distances of footprints from another one.  [tries]"""
    apart = np.linalg.norm(circles[:, :, None, :2] - other[:, :2], axis=3)
    return (apart - circles[:, :, None, 2] - other[:, 2]).min((1, 2))


def aside(circles, start, way):
    """Distances of footprints from the ray from `start` along `way`.  [tries]"""
    apart = circles[..., :2] - start
    away = apart - np.maximum(apart @ way, 0)[..., None] * way
    return (np.linalg.norm(away, axis=2) - circles[..., 2]).min(1)


# --------------------------------------------------------------------------------------------
# The operator who demonstrates kitchen tasks
# --------------------------------------------------------------------------------------------

BESIDE, OBJECT, CARRY, PUSH = range(4)  # anchors; BESIDE: where the waypoint began
ALIKE = {  # order of rotational symmetry about z, for grasping
    "carton": 4, "bowl": 6, "tumbler": 6, "bottle": 360, "can": 360, "jar": 360, "shaker": 360,
}  # fmt: skip


class Operator:
    """Scripted demonstrator: does each robot's task by waypoints, as an operator in VR would."""

    TURN = 0.4  # rad, most per step
    ROOM = 0.005  # m, between each jaw and what they are to grip

    def __init__(self, world, seed=0):
        check(isinstance(world, Kitchen), "an Operator does kitchen tasks: give it a Kitchen")
        self.world, self.seed, n = world, seed, world.n
        self.script = np.zeros((n, 9, 8))  # anchor, x, y, z, finger angle, speed, tolerance, stay
        self.phase, self.frames, self.fingers = np.zeros(n, int), np.zeros(n, int), np.zeros(n)
        self.entry, self.yaw, self.way = np.zeros((n, 3)), np.zeros(n), np.zeros((n, 3))
        self.slot, self.ended = [()] * n, np.zeros(n, bool)  # is its script at its end?
        self.episode = np.zeros(n, int)  # for which the scripts were drawn
        self.begin()

    def begin(self):
        """Plan for robots that have begun a new episode."""
        ids = np.flatnonzero(self.episode != self.world.physics.episode)
        self.episode[ids] = self.world.physics.episode[ids]
        for i in ids:
            rng = np.random.default_rng((9, self.seed, i, self.episode[i]))
            self.slot[i] = SLOTS[self.world.tasks[i].slot]
            rows, self.yaw[i] = self._plan(i, rng)
            self.script[i] = rows + [[*rows[-1][:7], np.inf]] * (9 - len(rows))
        self.phase[ids] = self.frames[ids] = 0
        self.entry[ids] = self.world.physics.qpos[ids, :3]

    def _plan(self, i, rng):
        """Waypoints and the yaw of the gripper."""
        world, (family, *which) = self.world, self.slot[i]
        fast, slow = rng.uniform(0.04, 0.055), rng.uniform(0.025, 0.035)
        high = rng.uniform(0.09, 0.13)
        side = rng.uniform(-0.004, 0.004, 2)
        if family == "press":
            x, y = side / 4  # less: walls surround the cap
            up, yaw = [OBJECT, x, y, high, 0, fast, 0.015, 0], rng.uniform(-0.1, 0.1)
            return [up, [OBJECT, x, y, 0.02, 0, slow, 0.008, 2], [*up[:6], 0.02, 2]], yaw
        pieces = [kitchenware()[o] for o in scenes()[world.tasks[i].scene].objects]
        a, b = pieces[which[0]], pieces[which[-1]]
        turn = world.turn[i, which[0]]
        yaw = np.arctan2(turn[3], turn[0])
        if family == "push":
            way = world.place[i, which[1]] - world.place[i, which[0]]
            self.way[i] = way = way / np.linalg.norm(way)
            x, y, _ = -way * (reach(a.circles) + 0.03)
            low = 0.013 + rng.uniform(0, 0.004)
            return [
                [OBJECT, x, y, high + 0.03, 0, fast, 0.03, 0],
                [OBJECT, x, y, low, 0, fast, 0.01, 0],
                [PUSH, 0, 0, low, 0, 0.7 * slow, 0, 0],
                [BESIDE, 0, 0, high, 0, fast, 0.02, 2],
            ], np.arctan2(way[1], way[0])
        x, y, z, angle, wide = a.grasp
        wide = (wide + self.ROOM) / self.world.JAW[6] + rng.uniform(0, 0.04)
        part = 2 * np.pi / ALIKE.get(a.kind, 1)
        yaw += part * np.round((-np.pi / 2 - yaw) / part)  # among alike yaws, towards the operator
        x, y = x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw)
        rows = [
            [OBJECT, x, y, z + high, wide, fast, 0.02, 0],
            [OBJECT, x, y, z, wide, slow, 0.006, 0],
            [BESIDE, 0, 0, 0, 0, slow, 1, 0],
            [BESIDE, 0, 0, high, 0, fast, 0.02, 0],
        ]
        if family == "place":
            rows += [
                [CARRY, *side, high + 0.01, 0, 0.8 * fast, 0.02, 0],
                [CARRY, *side, b.floor + 0.006, 0, slow, 0.01, 0],
                [BESIDE, 0, 0, 0, wide, slow, 1, 0],
                [BESIDE, 0, 0, 0.12, wide, fast, 0.02, 3],
            ]
        else:
            rows[-1][-1] = 3
        return rows, yaw + angle - np.pi / 2  # jaws close along the gripper's y axis

    def act(self):
        """Absolute poses, one step towards each robot's current waypoint."""
        self.begin()
        self._move_on()
        pose = self.world.physics.qpos[:, :7] / self.world.JAW
        error, turn = self._error()
        finger, speed = self.script[np.arange(self.world.n), self.phase, 4:6].T
        distance = np.linalg.norm(error, axis=1)
        move = error * np.minimum(1, speed / np.maximum(distance, 1e-9))[:, None]
        actions = np.concatenate([pose[:, :3] + move, 0 * move, finger[:, None]], 1)
        actions[:, 5] = pose[:, 5] + np.clip(turn, -self.TURN, self.TURN)
        self.frames += 1
        self.fingers = pose[:, 6]
        return np.clip(actions, self.world.low, self.world.high)

    def _error(self):
        """Displacement of each waypoint from the gripper, and the yaw that is left to turn."""
        world, robots = self.world, np.arange(self.world.n)
        tool = world.physics.qpos[:, :3]
        anchor, x, y, z = self.script[robots, self.phase, :4].T
        which = [(slot[0] == "press", slot[1], slot[-1]) for slot in self.slot]
        press, first, last = np.array(which).T
        a, b = world.place[robots, first], world.place[robots, last]
        a = np.where(press[:, None], world.buttons[robots, np.minimum(first, 1)], a)
        ahead = a + 0.06 * self.way
        bases = np.stack([self.entry, a, b + tool - a, ahead])  # by anchor
        goal = bases[anchor.astype(int), robots] + np.stack([x, y, z], 1)
        turn = self.yaw - world.physics.qpos[:, 5]
        return goal - tool, (turn + np.pi / 2) % np.pi - np.pi / 2  # modulo π: jaws are alike

    def _move_on(self):
        """Go on to the next waypoint, for robots that have arrived with their fingers at rest.

        They do not pause, so that the state alone tells a policy what to do next.  Only once a
        task is done, in frames that are not learned from, do they stay for a while.
        """
        world, robots = self.world, np.arange(self.world.n)
        error, turn = self._error()
        anchor, tolerance, stay = self.script[robots, self.phase][:, [0, 6, 7]].T
        pair = np.array([slot[1] + slot[-1] - 1 for slot in self.slot])
        met = world.touched[robots, np.clip(pair, 0, 2)] > 0
        near = (np.linalg.norm(error, axis=1) < tolerance) & (np.abs(turn) < 0.1)
        rest = np.abs(world.physics.qpos[:, 6] / world.JAW[6] - self.fingers) < 0.02
        done = np.flatnonzero(np.where(anchor == PUSH, met, near & rest) & (self.frames > stay))
        self.phase[done] += 1
        self.frames[done] = 0
        self.entry[done] = world.physics.qpos[done, :3]
        self.ended = np.isinf(self.script[robots, self.phase, 7])


# --------------------------------------------------------------------------------------------
# Demonstration files
# --------------------------------------------------------------------------------------------

WORLDS = {"stack": Stack, "kitchen": Kitchen}
VERSION = 2  # of the file format and of both worlds
ARRAYS = {  # key: type, shape of a row in each world, how many rows more than actions
    "states": ("f8", {"stack": (66,), "kitchen": (112,)}, 1),
    "actions": ("f4", {"stack": (9,), "kitchen": (7,)}, 0),
    "rewards": ("f4", {"stack": (), "kitchen": ()}, 0),
    "dones": ("?", {"stack": (), "kitchen": ()}, 0),
    "obs/features": ("f4", {"stack": (51,), "kitchen": (51,)}, 1),
    "obs/body": ("f4", {"stack": (24,), "kitchen": (7,)}, 1),
}
FACTS = {"world": "U16", "version": "i8", "seed": "i8", "by": "U16", "scene": "i8", "slot": "i8"}


def write_atomically(path, write):
    """Let `write` fill a temporary file, and rename it only once it is on the disk in full."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_demo(path, arrays, world, seed, by, task=(-1, -1)):
    """Save a demonstration: arrays under robomimic's keys, and the FACTS of how it was made."""
    wrong = set(arrays) ^ set(ARRAYS)
    check(not wrong, f"a demonstration has not just the keys it should: {', '.join(sorted(wrong))}")
    facts = dict(zip(FACTS, (world, VERSION, seed, by, *task), strict=True))
    every = {key: np.asarray(v, ARRAYS[key][0], order="C") for key, v in arrays.items()}
    every |= {key: np.asarray(value, FACTS[key]) for key, value in facts.items()}
    write_atomically(path, lambda file: np.savez_compressed(file, **every))


def how_to_make(world, folder, count=0):
    """Advice to whom DIR/stack200/A, or DIR/kitchen/train, lacks demonstrations."""
    root, name = folder.parent.parent, folder.parent.name
    horizon = name.removeprefix("stack")
    flags = " --world kitchen" * (world == "kitchen")
    flags += f" --horizon {horizon}" * horizon.isdecimal() + f" --count {count}" * (count > 0)
    flags += f" --demos {root}" * (horizon.isdecimal() or name == "kitchen")
    return f"make some with: python train.py demos{flags}"


def load_demo(path, world, keys=("states", "obs/features", "obs/body")):
    """A demonstration's arrays named by `keys`, and its FACTS; nothing else is read from the file.

    Actions and rewards are read only if named.  Sizes are checked before memory is allocated.
    """
    path = Path(path)
    check(path.is_file(), f"{path}: no such file; {how_to_make(world, path.parent)}")
    check(path.stat().st_size < 2e7, f"{path}: larger than 20 MB, this is no demonstration")
    try:
        with open(path, "rb") as file:  # numpy writes no zip comment: the end record is last
            file.seek(-42, os.SEEK_END)
            large, end = file.read(4) == b"PK\6\7", file.read()[-22:]  # zip64's tells other sizes
            small = end[:4] == b"PK\5\6" and int.from_bytes(end[12:16], "little") < 10_000
            check(small and not large, "it is no small .npz archive")
        with zipfile.ZipFile(path) as archive:
            demo = {key: _read(archive, key, kind, ()).item() for key, kind in FACTS.items()}
            check((demo["world"] + demo["by"]).isprintable(), "its names are not text")
            made_for = f"{demo['world']!r}, version {demo['version']}"
            good = demo["world"] == world and demo["version"] == VERSION
            advice = f"not for {world!r}, version {VERSION}: make others elsewhere"
            check(good, f"made for the world {made_for}, {advice}")
            if world == "kitchen":
                check_task((demo["scene"], demo["slot"]))
            rows = _shape(archive, "states")[0] - 1
            check(1 <= rows <= LONGEST, f"{rows} steps; a demonstration has 1 to {LONGEST}")
            for key in keys:
                kind, columns, extra = ARRAYS[key]
                demo[key] = _read(archive, key, kind, (rows + extra, *columns[world]))
    except Exception as error:  # whatever a damaged file makes the readers raise
        if blameless(error):
            raise
        fault = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{path}: truncated, damaged or no demonstration here: {fault}") from None
    return demo


def blameless(error):
    """Is an error in reading a file not the file's fault, but of memory, rights, disk or system?"""
    torchs = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    short = isinstance(error, MemoryError) or torchs
    named = (None, errno.EINVAL, errno.ENOENT)  # as of archives that were cut, or are missing
    return short or (isinstance(error, OSError) and error.errno not in named)


def _open(archive, key):
    """An array's file, if it is packed in a way that lets no more be unpacked than is asked for."""
    packed = archive.getinfo(f"{key}.npy").compress_type
    check(packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), f"{key} is packed in another way")
    return archive.open(f"{key}.npy")


def _shape(archive, key):
    """The shape that an array's header claims."""
    with _open(archive, key) as member:
        check(np.lib.format.read_magic(member) == (1, 0), f"{key} has a header of another version")
        shape, _, _ = np.lib.format.read_array_header_1_0(member, max_header_size=1000)
    check(len(shape) > 0, f"{key} is a number, expected an array")
    return shape


def _read(archive, key, kind, shape):
    """An array; its header must be exactly what numpy writes for this type and shape."""
    wanted, kind = io.BytesIO(), np.dtype(kind)
    claim = {"descr": kind.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(wanted, claim)
    with _open(archive, key) as member:
        good = member.read(len(wanted.getvalue())) == wanted.getvalue()
        check(good, f"{key} is not an array of {kind} of shape {shape}")
        size = kind.itemsize * math.prod(shape)
        data = member.read(size)
        check(len(data) == size and not member.read(1), f"{key} is not as long as its header says")
    array = np.frombuffer(bytearray(data), kind).reshape(shape)  # bytearray: may be written to
    check(kind.kind != "f" or np.isfinite(array).all(), f"{key} holds a NaN or an infinity")
    return array


def load_demos(folder, world, keys=("states", "obs/features", "obs/body"), count=None):
    """The first `count` demonstrations of a folder, sorted by name; or the one of a file."""
    folder = Path(folder)
    paths = [folder] if folder.suffix == ".npz" else sorted(folder.glob("*.npz"))
    enough = len(paths) >= max(count or 1, 1)
    found = f"{folder} holds {len(paths)} demonstrations, {count or 1} wanted"
    folder = folder.parent if folder.suffix == ".npz" else folder
    check(enough, f"{found}; {how_to_make(world, folder, count or 0)}")
    return [load_demo(path, world, keys) for path in paths[:count]]


def demo_folder(root, world, by, horizon=200):
    return Path(root) / (f"stack{horizon}" if world == "stack" else world) / by


def make_demos(folder, world, by, count, seed=0, horizon=200, processes=2):
    """Make what a folder lacks of `count` demonstrations (in the kitchen: `count` of each task).

    `by` is one of the PEOPLE or, in the kitchen, a split, whose tasks the operator demonstrates.
    """
    check(world in WORLDS, f"world is {world!r}; it is one of {', '.join(WORLDS)}")
    whole("count", count, 1, 9999)
    makers = list(PEOPLE) if world == "stack" else list(SPLITS)
    check(by in makers, f"by is {by!r}; it is one of {', '.join(makers)}")
    if world == "stack":
        names, size = {k: f"{k:04d}.npz" for k in range(count)}, 25
    else:
        tasks, size = range(len(tasks_of(by))), 40
        names = {1000 * k + t: f"{t:03d}_{k}.npz" for k in range(count) for t in tasks}
    chunks, jobs = {}, []  # number of the first (for the seed): files that are made together
    for number, name in names.items():
        chunks.setdefault(number - number % size, []).append(Path(folder) / name)
    for number, paths in chunks.items():
        mine = np.random.SeedSequence((seed, len(makers), makers.index(by), number))
        mine = int(mine.generate_state(1)[0])
        there = [path for path in paths if path.exists()]
        if there:
            demo = load_demo(there[0], world, ("dones",))
            steps, advice = len(demo["dones"]), f"make these elsewhere than in {folder}"
            check(demo["seed"] == mine, f"{there[0]} was made with another --seed; {advice}")
            good = world == "kitchen" or steps == horizon
            check(good, f"{there[0]} has {steps} steps, not --horizon {horizon}; {advice}")
        if len(there) < len(paths):
            jobs.append((world, by, paths, mine, horizon))
    if jobs:
        workers = min(processes, len(jobs))
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
        ours = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
        try:
            made = pool.map(_demonstrate, jobs)
        finally:
            signal.signal(signal.SIGINT, ours)
        try:
            list(tqdm(made, f"demonstrations by {by}", len(jobs), unit="chunk"))
        except BrokenProcessPool:  # a Pool would wait for ever
            advice = "is memory short? What is made stays: the same command makes the rest"
            raise RuntimeError(f"a process that made demonstrations died; {advice}") from None
        except KeyboardInterrupt:
            for worker in multiprocessing.active_children():
                worker.terminate()  # a file is there as a whole, or not at all
                worker.join()
                for part in Path(folder).glob(f".*.{worker.pid}.part"):
                    part.unlink()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _demonstrate(job):
    """Make those of the job's paths that are missing, one robot per path.

    People's episodes are kept even if they fail; the operator repeats those that fail.
    """
    name, by, paths, seed, horizon = job
    if name == "stack":
        world, tasks = Stack(len(paths), seed, horizon=horizon), [(-1, -1)] * len(paths)
        demonstrator = Person(world, by, seed)
    else:
        tasks = [tasks_of(by)[int(path.name[:3])] for path in paths]
        world = Kitchen(len(paths), seed, obs="features", tasks=tasks)
        demonstrator, by = Operator(world, seed), "operator"
    todo = np.array([not path.exists() for path in paths])
    for _ in range(50):
        rows, going, told = [], todo.copy(), (None, None, None)
        for t in range(world.horizon + 1):
            rows.append((world.get_state(), *told, world.features(), world.body()))
            actions = np.float32(demonstrator.act())  # as files store them
            ended = demonstrator.ended & going
            going &= ~ended
            kept = ended & (name == "stack" or world.succeeded())
            for i in np.flatnonzero(kept):
                save_demo(paths[i], of_robot(i, rows), name, seed, by, tasks[i])
            todo &= ~kept
            if t < world.horizon:
                _, reward, _, last = world.step(actions)
                told = actions, reward, last
        if not todo.any():
            return
        world.reset()
    raise RuntimeError(f"{paths[np.flatnonzero(todo)[0]]}: not done in 50 attempts")


def of_robot(i, rows):
    """Robot i's demonstration, of rows in the order of ARRAYS.

    What a step told is in the row after it, so not in the first.
    """
    arrays = {
        key: np.stack([row[k][i] for row in rows[1 - extra :]])
        for k, (key, (_, _, extra)) in enumerate(ARRAYS.items())
    }
    arrays["dones"][-1] = True
    return arrays


# --------------------------------------------------------------------------------------------
# Either world as a gymnasium.Env, so that any other library can train here
# --------------------------------------------------------------------------------------------


def gym(world="stack", **options):
    """A gymnasium.Env of one robot: env.gym("kitchen", obs="pixels", tasks=[...])."""
    check(world in WORLDS, f"world is {world!r}; it is one of {', '.join(WORLDS)}")
    gymnasium = need("gymnasium", "env.gym needs gymnasium: pip install gymnasium")
    inner, spaces = WORLDS[world](n=1, **options), gymnasium.spaces

    def see(image):
        """The kitchen's policies see the pose beside the image, as in the paper."""
        with_pose = world == "kitchen" and inner.obs == "pixels"
        return {"image": image[0], "pose": inner.pose()[0]} if with_pose else image[0]

    def space(value):
        if isinstance(value, dict):
            return spaces.Dict({key: space(part) for key, part in value.items()})
        low, high = (0, 255) if value.dtype == np.uint8 else (-np.inf, np.inf)
        return spaces.Box(low, high, value.shape, value.dtype)

    class Env(gymnasium.Env):
        metadata = {"render_modes": ["rgb_array"], "render_fps": inner.RATE}
        render_mode, begun = "rgb_array", "seed" in options
        observation_space = space(see(inner.observe()))
        action_space = spaces.Box(np.float32(inner.low), np.float32(inner.high))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            if seed is not None or not self.begun:  # without a seed, each environment draws one
                inner.physics.seed = int(self.np_random.integers(2**32))
                inner.physics.episode[:] = 0
            self.begun = True
            return see(inner.reset()), {}

        def step(self, action):
            obs, reward, _, last = inner.step(np.asarray(action)[None])
            return see(obs), float(reward[0]), False, bool(last[0]), {}  # time limits alone

        def render(self):
            return inner.pixels()[0]

    return Env()


class Gymnasium:
    """n environments of gymnasium with our worlds' interface: Gymnasium("Pendulum-v1", n=4).

    Actions and observations must be boxes.  Their state cannot be read, so it is not saved.
    """

    def __init__(self, name, n=1, seed=0, horizon=None):
        gymnasium = need("gymnasium", f"{name} needs gymnasium: pip install 'gymnasium[mujoco]'")
        self.n, self.seed = whole("n", n, 1, 10_000), whole("seed", seed, 0, 2**32 - 1)
        try:
            self.envs = [gymnasium.make(name, max_episode_steps=horizon) for _ in range(n)]
        except (gymnasium.error.Error, ImportError) as error:  # which tell what to install
            raise ValueError(f"gymnasium cannot make {name}: {error}") from None
        space, look = self.envs[0].action_space, self.envs[0].observation_space
        boxes = all(isinstance(s, gymnasium.spaces.Box) for s in (space, look))
        check(boxes, f"{name} has other actions or observations than boxes of numbers")
        good = space.is_bounded() and len(space.shape) == len(look.shape) == 1
        check(good, f"{name}: expected bounded actions and one row of observations")
        self.low, self.high = space.low.astype(np.float64), space.high.astype(np.float64)
        self.horizon = self.envs[0].spec.max_episode_steps
        check(self.horizon, f"{name} has no time limit; give it one with --horizon")
        self.episode, self.obs = np.zeros(n, np.int64), np.zeros((n, *look.shape), "f4")
        self.reset()

    def observe(self):
        return self.obs.copy()

    def reset(self, ids=None):
        ids = np.arange(self.n)[slice(None) if ids is None else ids]
        self.episode[ids] += 1
        for i in ids:
            seed = np.random.SeedSequence((0, self.seed, i, self.episode[i])).generate_state(1)[0]
            self.obs[i] = self.envs[i].reset(seed=int(seed))[0]
        return self.obs[ids]

    def step(self, actions):
        reward, discount, last = np.zeros(self.n), np.ones(self.n), np.zeros(self.n, bool)
        for i, (one, action) in enumerate(zip(self.envs, actions, strict=True)):
            self.obs[i], reward[i], ended, late, _ = one.step(np.float32(action))
            discount[i], last[i] = 1 - ended, ended or late
        return self.observe(), reward, discount, last
