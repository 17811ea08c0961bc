"""The camera: what it leaves out for speed must not show, and it needs nothing but a processor."""

import hashlib
import multiprocessing
import os
import subprocess
import sys

import mujoco
import numpy as np
import pytest

import env


def stack_states(n=6):
    world = env.Stack(n)
    person = env.Person(world, "A")
    for _ in range(60):
        world.step(person.act())
    return world, world.get_state()


def slow_image(camera, data, model):
    """Every ray cast, every pixel shaded alone: Lambert's law as the text books have it."""
    lamp, colour = camera.lamp, 255 * model.geom_rgba[:, :3]
    geom, normal = np.zeros(1, np.int32), np.zeros(3)
    image = np.zeros((camera.size**2, 3))
    for k, ray in enumerate(camera.rays):
        eye = camera.eye
        depth = mujoco.mj_ray(model, data, eye, ray, None, 1, -1, geom, normal)
        if depth < 0 or depth > 10:
            image[k] = camera.SKY
            continue
        point = eye + depth * ray
        way = lamp - point
        light = camera.DIFFUSE * max(normal @ way / np.linalg.norm(way), 0)
        hit, distance = geom[0], np.linalg.norm(way)
        if camera.shadows:
            between = mujoco.mj_ray(model, data, lamp, -way / distance, None, 1, -1, geom, None)
            light *= not 0 <= between < distance - 1e-3
        image[k] = np.minimum(colour[hit] * (camera.AMBIENT + light), 255)
    return image.reshape(camera.size, camera.size, 3)


@pytest.mark.parametrize("shadows", [False, True])
@pytest.mark.parametrize("world", ["stack", "kitchen"])
def test_rays_left_out_and_backgrounds_kept_do_not_change_the_picture(world, shadows):
    if world == "stack":
        _, states = stack_states(2)
        model = env.Stack(1).model
        camera = env.Camera(model, "front", 48, shadows)
    else:
        tasks = [env.tasks_of("test")[7]] * 2
        states = env.Kitchen(2, obs="features", tasks=tasks).get_state()
        model = env.scene_model(tasks[0].scene)
        camera = env.scene_camera(tasks[0].scene, 48, shadows)
    data = mujoco.MjData(model)
    for state in states:
        data.qpos = state[1 : 1 + model.nq]
        if world == "kitchen":
            data.mocap_pos = state[-24:-18].reshape(2, 3)
        mujoco.mj_kinematics(model, data)
        slow, fast = slow_image(camera, data, model), camera.image(data)
        off = np.abs(slow - fast).max(2) > 1.01  # fast is rounded down
        assert off.mean() < 0.001, f"{off.sum()} pixels"  # a ray along an edge may fall either way


def test_shadows_darken_and_only_that():
    world, states = stack_states()
    plain = world.render(states).astype(int)
    shaded = env.Stack(1, shadows=True).render(states).astype(int)
    assert (shaded <= plain).all()
    assert 0.01 < (shaded < plain).any(3).mean() < 0.5


@pytest.mark.parametrize("size", [32, 64, 100, 128, 256])
def test_sizes(size):
    world = env.Stack(1, obs="pixels", size=size)
    assert world.observe().shape == (1, size, size, 3)
    assert world.observe().std() > 10


def test_a_point_is_projected_to_where_the_camera_shows_it():
    """What lies on a pixel's ray, however far away, is projected to the pixel's middle."""
    size = 48
    for camera in (env.Stack(1, size=size).camera, env.scene_camera(3, size, False)):
        y, x = np.divmod(np.arange(size**2), size)
        far = np.random.default_rng(0).uniform(0.1, 2, (size**2, 1))
        found = (camera.project(camera.eye + far * camera.rays) + 1) * size / 2
        np.testing.assert_allclose(found, np.stack([x, y], 1) + 0.5, atol=1e-4)


def test_the_kitchens_camera_shows_every_object():
    world = env.Kitchen(1, tasks=env.tasks_of("train")[:1], size=100)
    model = env.scene_model(0)
    shown = env.scene_camera(0, 100, False)
    world.physics.pictures([shown], world.get_state(), 100)
    seen = set(shown._cast(world.physics.scratch, shown.eye, shown.rays, static=True)[0].tolist())
    for name in ("object_0", "object_1", "object_2", "cap_0", "cap_1", "gripper"):
        body = model.body(name).id
        assert seen & set(np.flatnonzero(model.geom_bodyid == body)), name


def digest(_):
    world, states = stack_states(2)
    kitchen = env.Kitchen(1, shadows=True, size=96)
    return hashlib.sha256(world.render(states).tobytes() + kitchen.observe().tobytes()).hexdigest()


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_every_process_sees_the_same_bytes(method):
    here = digest(0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert set(pool.map(digest, range(2), chunksize=1)) == {here}


AGREEMENT = """
import mujoco, numpy as np, env

def agree(world, camera, state):
    world.physics.pictures([camera], [state], 128)
    data = world.physics.scratch
    ours, _, _ = camera._cast(data, camera.eye, camera.rays, static=True)
    mujoco.mj_forward(camera.model, data)
    with mujoco.Renderer(camera.model, 128, 128) as renderer:
        print("OpenGL works")
        renderer.enable_segmentation_rendering()
        renderer.update_scene(data, "front")
        print((renderer.render()[..., 0].ravel() == ours).mean())

stack = env.Stack(2, size=128)
person = env.Person(stack, "A")
for t in range(120):
    stack.step(person.act())
    if t % 40 == 39:
        agree(stack, stack.camera, stack.get_state()[0])
kitchen = env.Kitchen(1, obs="features", tasks=[env.tasks_of("test")[3]])
operator = env.Operator(kitchen)
for t in range(30):
    kitchen.step(operator.act())
    if t % 10 == 9:
        camera = env.scene_camera(kitchen.tasks[0].scene, 128, False)
        agree(kitchen, camera, kitchen.get_state()[0])
"""


def test_agrees_with_opengl_where_there_is_any():
    """In a process of its own: a driver that crashes shall not take the tests along."""
    run = [sys.executable, "-c", AGREEMENT]
    variables = os.environ | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    done = subprocess.run(run, env=variables, capture_output=True, text=True, check=False)
    if "OpenGL works" not in done.stdout:
        without = subprocess.run([*run[:2], "import env"], capture_output=True, check=False)
        assert without.returncode == 0
        pytest.skip("no OpenGL driver here: " + done.stderr.strip().splitlines()[-1])
    agreement = [float(line) for line in done.stdout.split("\n") if line[:1].isdigit()]
    assert len(agreement) == 6, done.stderr
    assert min(agreement) >= 0.995, agreement
