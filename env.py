"""PLACEHOLDER"""

import copy
import functools
import os
from pathlib import Path

import mujoco
import numpy as np
from mujoco.batch import Batch

ASSETS = Path(__file__).parent / "assets"


def check(condition, message):
    """Bad input is the caller's to mend: say what is wrong and what was expected."""
    if not condition:
        raise ValueError(message)


# --------------------------------------------------------------------------------------------
# The camera
# --------------------------------------------------------------------------------------------


class View:
    """A pinhole: what an eye at `origin` sees through a square of cells."""

    def __init__(self, origin, axes, half, cells):
        self.origin, self.axes = origin, axes  # columns of axes: right, up, backward
        self.half, self.cells = half, cells  # half the square's side at distance 1

    def rays(self):
        """Unit vectors through the middle of each cell, row by row from the top."""  # [cells^2, 3]
        middle = (np.arange(self.cells) + 0.5) / self.cells * 2 - 1
        x, y = np.meshgrid(middle * self.half, -middle * self.half)
        rays = np.stack([x, y, -np.ones_like(x)], -1).reshape(-1, 3) @ self.axes.T
        return rays / np.linalg.norm(rays, axis=1, keepdims=True)

    def cell(self, points):
        """Index of the cell in which each point is seen; cells^2 if it is outside the square."""
        x, y, z = ((points - self.origin) @ self.axes).T
        column, row = x / -z / self.half, y / z / self.half  # [-1, 1]: in the square
        inside = (z < 0) & (np.maximum(np.abs(column), np.abs(row)) < 1)
        column = ((np.where(inside, column, 0) + 1) / 2 * self.cells).astype(int)
        row = ((np.where(inside, row, 0) + 1) / 2 * self.cells).astype(int)
        return np.where(inside, row * self.cells + column, self.cells**2)

    def covered(self, centre, radius):
        """Cells that spheres may touch: the rectangles around their images.  [cells^2 + 1]"""
        x, y, z = ((centre - self.origin) @ self.axes).T
        near, far = np.maximum(-z - radius, 1e-3), np.maximum(-z + radius, 1e-3)
        edges = np.stack([x - radius, -x - radius, y - radius, -y - radius])  # [4, spheres]
        edges = np.minimum(edges / near, edges / far) / self.half  # left, -right, bottom, -top
        left, right, bottom, top = edges * [[1], [-1], [1], [-1]]
        bounds = np.stack([-top, -bottom, left, right]) * self.cells / 2 + self.cells / 2
        bounds = np.clip(bounds + [[0], [1], [0], [1]], 0, self.cells).astype(int)
        mask = np.zeros(self.cells**2 + 1, bool)
        grid = mask[:-1].reshape(self.cells, self.cells)
        for row, row_end, column, column_end in bounds[:, far > 1e-3].T.tolist():
            grid[row:row_end, column:column_end] = True
        return mask


class Camera:
    """RGB uint8 images: one ray a pixel (`mj_multiRay`), Lambert's law, no OpenGL.

    What stands still is cast once. A frame casts only the rays that may meet something that
    moves: the pixels under the moving geoms' bounding spheres, as the camera sees them and, for
    shadows, as the lamp does.
    """

    AMBIENT, DIFFUSE, SKY = 0.45, 0.65, np.float32([168, 194, 214])

    def __init__(self, model, name, size=64, shadows=False):
        check(32 <= size <= 256, f"image size is {size}; a camera takes 32 to 256 pixels square")
        self.model, self.size, self.shadows = model, size, shadows
        self.colour = 255 * model.geom_rgba[:, :3].astype(np.float32)  # [geoms, 3]
        root = model.body_rootid[model.geom_bodyid]
        moves = (model.body_weldid[model.geom_bodyid] > 0) | (model.body_mocapid[root] >= 0)
        self.moving = np.flatnonzero(moves & (model.geom_rgba[:, 3] > 0))
        self.radius = model.geom_rbound[self.moving]

        data = mujoco.MjData(model)
        mujoco.mj_forward(model, data)
        camera, lamp = model.camera(name).id, model.light("lamp").id
        half = np.tan(np.deg2rad(model.cam_fovy[camera]) / 2)
        eye = data.cam_xpos[camera].copy()
        self.eye = View(eye, data.cam_xmat[camera].reshape(3, 3).copy(), half, size)
        self.rays = self.eye.rays()
        self.lamp = self._lamp_view(data.light_xpos[lamp].copy())
        self._cast_background(data)

    def _lamp_view(self, origin):
        """The lamp looks where the middle of the image meets the table, some 60 cm around."""
        ray = -self.eye.axes[:, 2]
        middle = self.eye.origin - ray * self.eye.origin[2] / ray[2]
        back = origin - middle
        right = np.cross([0.0, 1.0, 0.0], back)
        axes = np.stack([right, np.cross(back, right), back], 1)
        distance = np.linalg.norm(back)
        return View(origin, axes / np.linalg.norm(axes, axis=0), 0.6 / distance, 64)

    def _cast_background(self, data):
        """Depth and colour, in light and in shadow, of everything that stands still."""
        model, self.model = self.model, copy.copy(self.model)
        self.model.geom_rgba[self.moving, 3] = 0  # what moves is cast anew in each frame
        geom, depth, normal = self._cast(data, self.eye.origin, self.rays, static=True)
        hit = geom >= 0
        self.depth = np.where(hit, depth, np.inf)
        self.points = self.eye.origin + self.rays * depth[:, None]  # [pixels, 3]
        self.bright = np.tile(self.SKY, (len(geom), 1))
        self.dark = self.bright.copy()
        self.bright[hit] = self._shade(data, geom[hit], self.points[hit], normal[hit])
        self.dark[hit] = self.AMBIENT * self.colour[geom[hit]]
        self.bright, self.dark = self.bright.astype(np.uint8), self.dark.astype(np.uint8)
        self.cell = self.lamp.cell(self.points)
        self.cell[~hit] = self.lamp.cells**2
        self.model = model

    def _cast(self, data, origin, rays, static):
        """Geom [R] (-1: none), distance [R] and normal [R, 3] of what each ray meets first."""
        R = len(rays)
        geom, depth, normal = np.empty(R, np.int32), np.empty(R), np.empty(3 * R)
        if R:
            rays = np.ascontiguousarray(rays).reshape(-1)
            mujoco.mj_multiRay(
                self.model, data, origin, rays, None, static, -1, geom, depth, normal, R, 10.0
            )
        return geom, depth, normal.reshape(R, 3)

    def _shadowed(self, data, points):
        """Does anything stand between the lamp and the points?  [P] bool"""
        rays = points - self.lamp.origin
        distance = np.linalg.norm(rays, axis=1)
        geom, depth, _ = self._cast(data, self.lamp.origin, rays / distance[:, None], static=True)
        return (geom >= 0) & (depth < distance - 1e-3)

    def _shade(self, data, geom, points, normal):
        """Lambert's law: colour (ambient + diffuse cos angle), the latter if lit.  [P, 3]"""
        toward = self.lamp.origin - points
        cosine = (normal * toward).sum(1) / np.linalg.norm(toward, axis=1)
        light = self.DIFFUSE * np.maximum(cosine, 0)
        if self.shadows:
            light *= ~self._shadowed(data, points)
        return self.colour[geom] * np.float32(self.AMBIENT + light)[:, None]

    def segment(self, data):
        """Geom that each pixel shows, -1 for the sky, all rays cast.  [size, size] int"""
        geom, _, _ = self._cast(data, self.eye.origin, self.rays, static=True)
        return geom.reshape(self.size, self.size)

    def image(self, data):
        """The picture of `data`, whose kinematics are up to date.  [size, size, 3] uint8"""
        centre = data.geom_xpos[self.moving]
        pixel = np.flatnonzero(self.eye.covered(centre, self.radius)[:-1])
        rays = self.rays[pixel]
        geom, depth, normal = self._cast(data, self.eye.origin, rays, static=False)
        near = (geom >= 0) & (depth < self.depth[pixel])
        image = self.bright.copy()
        if self.shadows:
            maybe = np.flatnonzero(self.lamp.covered(centre, self.radius)[self.cell])
            dark = maybe[self._shadowed(data, self.points[maybe])]
            image[dark] = self.dark[dark]
        points = self.eye.origin + rays[near] * depth[near, None]
        image[pixel[near]] = self._shade(data, geom[near], points, normal[near]).astype(np.uint8)
        return image.reshape(self.size, self.size, 3)


# --------------------------------------------------------------------------------------------
# Stack: the Jaco arm and two blocks (MetaMimic, section 3.1)
# --------------------------------------------------------------------------------------------

REWARDS = {  # of the stages: none, reach, lift, stack
    "reach": np.array([0, 1, 1, 1]),
    "lift": np.array([0, 0.125, 1, 1]),
    "stack": np.array([0, 0.125, 0.25, 1]),
}
HALF = 0.025  # half a block's edge, m


class Stack:
    """n Jaco arms, each before two blocks: put the red block on the blue one.

    Actions are nine joint velocities in [-1, 1] at 20 Hz.  Arrays are [n, ...] for all robots, or
    [k, ...] where `ids` names k of them.
    """

    RATE, SUBSTEPS, ACTIONS = 20, 10, 9
    HOME = np.array([4.933, 3.819, 1.202, 3.297, 5.675, 5.088, 0.8, 0.8, 0.8])  # pinch 10 cm up
    FEATURES = {  # name: columns
        "joints": slice(0, 9),
        "joint_velocities": slice(9, 18),
        "pinch": slice(18, 21),
        "pinch_velocity": slice(21, 24),
        "block_a": slice(24, 33),  # position, then the first two columns of the rotation matrix
        "block_b": slice(33, 42),
        "pinch_to_a": slice(42, 45),
        "pinch_to_b": slice(45, 48),
        "a_to_b": slice(48, 51),
    }

    def __init__(
        self, n=1, seed=0, obs="features", size=64, shadows=False, task="stack", horizon=200
    ):
        check(n >= 1, f"n is {n}; a world holds at least one robot")
        check(obs in ("features", "pixels"), f"obs is {obs!r}; it is 'features' or 'pixels'")
        check(task in REWARDS, f"task is {task!r}; it is one of {', '.join(REWARDS)}")
        check(horizon >= 1, f"horizon is {horizon}; an episode has at least one step")
        self.n, self.seed, self.obs, self.task, self.horizon = n, seed, obs, task, horizon
        self.model = model = mujoco.MjModel.from_xml_path(str(ASSETS / "stack.xml"))
        self.batch = Batch(model, n, nthread=1, persistent=True)
        self.camera = Camera(model, "front", size, shadows)
        self.scratch = mujoco.MjData(model)  # where a robot's pose is laid out for the camera
        self.episode = np.zeros(n, np.int64)  # episodes begun by each robot
        bind = self.batch.bind
        self.time, self.qpos, self.qvel = bind("time"), bind("qpos"), bind("qvel")
        self.hand_a, self.a_on_b, self.pinch_velocity = (
            self.batch.sensor(name).data for name in ("hand_a", "a_on_b", "pinch_velocity")
        )
        self.pinch = self.batch.site("pinch").xpos
        self.block_a, self.block_b = (
            (self.batch.body(name).xpos, self.batch.body(name).xmat, self.batch.joint(name).qvel)
            for name in ("block_a", "block_b")
        )
        self.state_size = 1 + model.nq + 2 * model.nv  # time, qpos, qvel, qacc_warmstart
        self.speed = model.actuator_ctrlrange[:, 1]  # what an action of 1 commands, rad/s
        self.reset()

    # -- state

    def get_state(self, ids=slice(None)):
        """All that the future depends on.  [k, state_size]"""
        return self.batch.state[ids, : self.state_size].copy()

    def set_state(self, states, ids=None):
        """Put robots into given states, from the start of an episode or from its middle."""
        states = np.asarray(states, np.float64)
        ids = np.arange(self.n) if ids is None else np.asarray(ids)
        expected = (len(ids), self.state_size)
        check(states.shape == expected, f"states have shape {states.shape}, expected {expected}")
        check(np.isfinite(states).all(), "states hold a NaN or an infinity")
        self.batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE)
        self.batch.state[ids, : self.state_size] = states
        self.batch.forward(ids)
        return self.observe(ids)

    def reset(self, ids=None):
        """Begin an episode: the arm near its home, the blocks anywhere before it."""
        ids = np.arange(self.n) if ids is None else np.asarray(ids)
        states = np.zeros((len(ids), self.state_size))
        for row, i in zip(states, ids, strict=True):
            rng = np.random.default_rng((self.seed, i, self.episode[i]))
            row[1:10] = self.HOME + rng.uniform(-0.05, 0.05, 9)
            row[10:17], row[17:24] = self._place_blocks(rng)
        self.episode[ids] += 1
        return self.set_state(states, ids)

    @staticmethod
    def _place_blocks(rng):
        """Two poses on the table, 9 cm apart at least, so that fingers fit between.  [2, 7]"""
        while True:
            places = rng.uniform(-0.08, 0.08, (2, 2))
            if np.linalg.norm(places[0] - places[1]) > 0.09:
                break
        yaw = rng.uniform(-np.pi, np.pi, 2)
        height, zero = np.full(2, HALF), np.zeros(2)
        quaternion = [np.cos(yaw / 2), zero, zero, np.sin(yaw / 2)]
        return np.stack([*places.T, height, *quaternion], 1)

    # -- what the robot sees and feels

    def observe(self, ids=slice(None)):
        return self.features(ids) if self.obs == "features" else self.pixels(ids)

    def features(self, ids=slice(None)):
        """What a perfect eye would see; the columns are in FEATURES.  [k, 51] float32"""
        (a, a_turn, _), (b, b_turn, _) = self.block_a, self.block_b
        pinch, a, b = self.pinch[ids], a[ids], b[ids]
        parts = [
            self.body(ids),
            a,
            a_turn[ids].reshape(-1, 3, 3)[:, :, :2].reshape(-1, 6),
            b,
            b_turn[ids].reshape(-1, 3, 3)[:, :, :2].reshape(-1, 6),
            a - pinch,
            b - pinch,
            b - a,
        ]
        return np.concatenate(parts, 1, dtype=np.float32, casting="same_kind")

    def body(self, ids=slice(None)):
        """Joint positions and velocities, pinch position and velocity (eq. 2's body).  [k, 24]"""
        parts = (self.qpos[ids, :9], self.qvel[ids, :9], self.pinch[ids], self.pinch_velocity[ids])
        return np.concatenate(parts, 1, dtype=np.float32, casting="same_kind")

    def pixels(self, ids=slice(None)):
        """[k, size, size, 3] uint8"""
        return self.render(self.qpos[ids])

    def render(self, states):
        """Images of states (or of their qpos alone).  [k, size, size, 3] uint8"""
        qpos = states if states.shape[1] == self.model.nq else states[:, 1 : 1 + self.model.nq]
        images = np.empty((len(qpos), self.camera.size, self.camera.size, 3), np.uint8)
        for image, row in zip(images, qpos, strict=True):
            self.scratch.qpos = row
            mujoco.mj_kinematics(self.model, self.scratch)
            image[:] = self.camera.image(self.scratch)
        return images

    # -- what it does

    @property
    def t(self):
        """Steps since the episode began.  [n]"""
        return np.rint(self.time * self.RATE).astype(int)

    def step(self, actions):
        """Observation, reward, discount, last.  A time limit ends the episode at discount 1."""
        actions = check_actions(actions, self.n, self.ACTIONS)
        self.batch.ctrl = actions * self.speed
        step_batch(self.batch, self.SUBSTEPS)
        reward = REWARDS[self.task][self.stage()]
        return self.observe(), reward, np.ones(self.n), self.t >= self.horizon

    def stage(self, ids=slice(None)):
        """0 nothing, 1 reach, 2 lift, 3 stack: what has been achieved at this moment.  [k]"""
        (a, a_turn, a_velocity), (b, b_turn, b_velocity) = (
            [x[ids] for x in block] for block in (self.block_a, self.block_b)
        )
        touched = self.hand_a[ids, 0] > 0
        up_a, up_b = np.abs(a_turn[:, 6:9]), np.abs(b_turn[:, 6:9])  # world's z in block axes
        reach = np.linalg.norm(a - self.pinch[ids], axis=1) < 0.05
        lift = touched & (a[:, 2] - HALF * up_a.sum(1) > 0.03)  # its lowest corner
        stack = ~touched & (self.a_on_b[ids, 0] > 0)
        stack &= (np.abs(b[:, 2] - HALF) < 0.005) & (np.abs(a[:, 2] - 3 * HALF) < 0.005)
        stack &= np.linalg.norm(a[:, :2] - b[:, :2], axis=1) < HALF
        stack &= (up_a.max(1) > 0.99) & (up_b.max(1) > 0.99)  # both flat, within 8 degrees
        for velocity in (a_velocity, b_velocity):
            stack &= np.linalg.norm(velocity[:, :3], axis=1) < 0.02  # m/s
            stack &= np.linalg.norm(velocity[:, 3:], axis=1) < 0.5  # rad/s
        return np.where(stack, 3, np.where(lift, 2, np.where(reach, 1, 0)))


def check_actions(actions, n, size):
    """Actions as float64 [n, size], refused if they are not finite numbers in [-1, 1]."""
    actions = np.asarray(actions, np.float64)
    check(actions.shape == (n, size), f"actions have shape {actions.shape}, expected {(n, size)}")
    # a NaN fails the comparison, too
    good = np.abs(actions) <= 1 + 1e-6
    if not good.all():
        i, j = np.argwhere(~good)[0]
        raise ValueError(f"action {j} of robot {i} is {actions[i, j]}; expected a number in [-1, 1]")
    return actions


def step_batch(batch, substeps):
    """Advance, and compute positions, velocities and their sensors at the new state."""
    batch.step(nstep=substeps, stage=mujoco.mjtStage.mjSTAGE_VEL)
    bad = batch.warning[:, mujoco.mjtWarning.mjWARN_BADQPOS.value :, 1].any(1)  # counts
    if bad.any():
        raise FloatingPointError(f"the physics of robot {np.flatnonzero(bad)[0]} diverged")


# --------------------------------------------------------------------------------------------
# The people who demonstrate stacking
# --------------------------------------------------------------------------------------------

PEOPLE = {  # each number is a range from which every episode draws
    "A": dict(  # brisk: comes in from the right, low arcs, one grip, steady hand
        side=(20, 70), reach=(0.03, 0.07), arc=(0.05, 0.08), speed=(0.08, 0.2), care=(0.03, 0.09),
        pause=(0, 5), regrip=0.05, tremor=0.003,
    ),
    "B": dict(  # careful: comes in from the left, high arcs, hesitates, often takes a new grip
        side=(160, 250), reach=(0.06, 0.12), arc=(0.08, 0.12), speed=(0.1, 0.24), care=(0.05, 0.1),
        pause=(1, 7), regrip=0.4, tremor=0.008,
    ),
}  # fmt: skip
HERE, BLOCK_A, BLOCK_B = 0, 1, 2  # what a waypoint is relative to
OPEN, CLOSED = 0.85, 1.5  # finger angles; closed is beyond reach, so that they go on pressing


class Person:
    """Teleoperates all robots of a Stack world with a position controller, in a style.

    Each episode follows a script of waypoints (rows of: anchor, x, y, z, finger angle, speed,
    tolerance, frames to stay), drawn anew; a lost block is fetched again. In longer episodes
    people take their time.
    """

    def __init__(self, world, style, seed=0):
        check(style in PEOPLE, f"style is {style!r}; it is one of {', '.join(PEOPLE)}")
        self.world, self.style, self.seed = world, PEOPLE[style], seed
        self.name = list(PEOPLE).index(style)
        n, self.pace = world.n, max(1, world.horizon / 200)
        self.script = np.zeros((n, 13, 8))
        self.tremor = np.zeros((n, world.horizon + 1, 3))
        self.phase, self.frames = np.zeros(n, int), np.zeros(n, int)
        self.entry, self.yaw = np.zeros((n, 3)), np.zeros(n)
        self.hand = world.model.body("hand").id
        self.hand_turn = world.batch.body("hand").xmat
        self.begin(np.arange(n))

    def begin(self, ids):
        """Draw scripts for the episodes that robots `ids` have just begun."""
        for i in ids:
            rng = np.random.default_rng((self.seed, self.name, i, self.world.episode[i]))
            self.script[i] = self._draw_script(rng)
            shake = rng.normal(size=self.tremor[i].shape) * self.style["tremor"]
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
        return np.array(
            [  # anchor, x, y, z, finger, speed, tolerance, stay
                [BLOCK_A, x, y, arc, OPEN, fast, 0.03, 0],  # come from one's own side
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
                [HERE, x, y, arc / 2, OPEN, fast, 0, np.inf],  # wait at one's own side
            ]
        )

    def _choose_yaw(self, ids):
        """Of the two ways to span the block, the one with room for fingers, else the nearer."""
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
        crowded = np.abs((along * away[:, None]).sum(-1)) / distance[:, None]
        cost = np.abs(options - now[:, None])
        cost += 10 * np.maximum(crowded - 0.6, 0) * (distance[:, None] < 0.13)
        self.yaw[ids] = options[np.arange(len(cost)), cost.argmin(1)]

    def tool(self):
        """Between the fingertips; the arm's pinch site lies 1 cm to one side of it.  [n, 3]"""
        return self.world.pinch - 0.01 * self.hand_turn.reshape(-1, 3, 3)[:, :, 0]

    def act(self):
        """Nine joint velocities for each robot: from where the hand should go, to how."""
        world, tool = self.world, self.tool()
        robots = np.arange(world.n)
        a, b = world.block_a[0], world.block_b[0]
        anchor, x, y, z, finger, speed, tolerance, stay = self.script[robots, self.phase].T
        held = (self.phase > 5) & (self.phase < 10)
        lost = held & (np.linalg.norm(a - tool, axis=1) > 0.04)
        missed = (self.phase == 12) & (a[:, 2] < 2 * HALF)
        base = np.select([anchor[:, None] == BLOCK_A, anchor[:, None] == BLOCK_B], [a, b], self.entry)
        goal = base + np.stack([x, y, z], 1)
        goal += np.where(anchor == BLOCK_B, 1, 0)[:, None] * (tool - a)  # what is held goes there
        error = goal - tool
        distance = np.linalg.norm(error, axis=1)
        velocity = error * np.minimum(8, speed / np.maximum(distance, 1e-6))[:, None]
        velocity += self.tremor[robots, np.minimum(world.t, world.horizon)]
        actions = self._joint_velocities(velocity, tool, finger)
        self.frames += 1
        done = (distance < tolerance) & (self.frames > stay) | (self.frames > 60 * self.pace) & np.isfinite(stay)
        self._move_on(np.flatnonzero(done), self.phase[done] + 1)
        again = np.flatnonzero(lost | missed)
        self._move_on(again, 0)
        self._choose_yaw(again)
        return actions

    def _move_on(self, ids, phase):
        self.phase[ids], self.frames[ids] = phase, 0
        self.entry[ids] = self.tool()[ids]

    def _joint_velocities(self, velocity, tool, finger):
        """Damped least squares on the hand's Jacobian, slowed to what the joints can do."""
        world = self.world
        turn = self.hand_turn.reshape(-1, 3, 3)
        c, s, zero = np.cos(self.yaw), np.sin(self.yaw), np.zeros(world.n)
        wanted = np.array([[c, -s, zero], [s, c, zero], [zero, zero, zero + 1]]).transpose(2, 0, 1)
        spin = 3.0 * np.cross(turn, wanted, axis=1).sum(2)  # rad/s, towards upright at that yaw
        jacobians = world.batch.jac(self.hand, tool)
        J = np.concatenate(jacobians, 1)[:, :, :6]  # [n, 6, 6]
        twist = np.concatenate([velocity, spin], 1)[:, :, None]
        damped = J @ J.transpose(0, 2, 1) + 1e-4 * np.eye(6)
        joints = (J.transpose(0, 2, 1) @ np.linalg.solve(damped, twist))[:, :, 0]
        arm = joints / world.speed[:6]
        arm /= np.maximum(np.abs(arm).max(1, keepdims=True), 1)
        fingers = 5 * (finger[:, None] - world.qpos[:, 6:9]) / world.speed[6:]
        return np.concatenate([arm, np.clip(fingers, -1, 1)], 1)
