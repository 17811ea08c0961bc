"""How fast the worlds and the camera are, on one core: python -m benchmarks.worlds

Prints what it measures and, last, one JSON line.  Control steps a second of both worlds with 32
robots, beside a bare loop of `mj_step` over the same model, states, controls and substeps: the
two take turns, step by step, so that a noisy machine disturbs both.  Frames a second of the ray
camera and of MuJoCo's OpenGL renderer (null without a driver) on the same states.  Medians.
"""

import json
import os
import subprocess
import sys
import tempfile
from time import perf_counter

os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})

import mujoco
import numpy as np
from tqdm import tqdm

import env

N = 32


def play(world, demonstrator, steps):
    """What the demonstrator does: the first state, and each step's actions and controls."""
    first, actions, controls = world.get_state(), [], []
    for _ in range(steps):
        actions.append(demonstrator.act())
        world.step(actions[-1])
        controls.append(world.physics.batch.ctrl.copy())
    return first, actions, controls


def race(world, models, first, actions, controls, name):
    """Seconds of each step of the world, and of the bare loop over the same physics."""
    physics, ours, bare = world.physics, [], []
    substeps = round(1 / (world.RATE * models[0].opt.timestep))
    world.set_state(first)
    datas = [mujoco.MjData(model) for model in models]
    nq, nv = models[0].nq, models[0].nv
    for data, state in zip(datas, first, strict=True):
        data.qpos, data.qvel = state[1 : 1 + nq], state[1 + nq : 1 + nq + nv]
        data.mocap_pos = state[physics.motion : physics.state_size].reshape(-1, 3)
    pairs = list(zip(models, datas, strict=True))
    for action, control in zip(tqdm(actions, name), controls, strict=True):
        start = perf_counter()
        world.step(action)
        middle = perf_counter()
        for (model, data), ctrl in zip(pairs, control, strict=True):
            data.ctrl = ctrl
            mujoco.mj_step(model, data, substeps)
        ours.append(middle - start)
        bare.append(perf_counter() - middle)
    return N / np.median(ours), N / np.median(bare), np.median(np.divide(bare, ours))


def frames_a_second(states, size, shadows=False):
    """Of a batch of robots, as `pixels` draws them."""
    world = env.Stack(N, obs="pixels", size=size, shadows=shadows)
    seconds = []
    for state in tqdm(states, f"camera {size}" + " shadows" * shadows):
        world.set_state(state)
        start = perf_counter()
        world.pixels()
        seconds.append(perf_counter() - start)
    return N / np.median(seconds)


GL = """
import sys, mujoco, numpy as np, env
from time import perf_counter
world, seconds = env.Stack(1), []
data = mujoco.MjData(world.model)
with mujoco.Renderer(world.model, int(sys.argv[2]), int(sys.argv[2])) as renderer:
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
    for state in np.load(sys.argv[1]):
        data.qpos = state[1 : 1 + world.model.nq]
        mujoco.mj_forward(world.model, data)
        start = perf_counter()
        renderer.update_scene(data, "front")
        renderer.render()
        seconds.append(perf_counter() - start)
print(1 / np.median(seconds))
"""


def gl_frames_a_second(states, size):
    """mujoco.Renderer without shadows, in a process of its own; None if there is no driver."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/states.npy", states)
        run = [sys.executable, "-c", GL, f"{folder}/states.npy", str(size)]
        variables = os.environ | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
        done = subprocess.run(run, env=variables, capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def main():
    result, stack = {}, {}
    for obs, name in (("features", "features"), ("pixels", "pixels64")):
        world = env.Stack(N, obs=obs)
        first, actions, controls = play(world, env.Person(world, "A"), 150)
        numbers = race(world, [world.model] * N, first, actions, controls, f"stack {name}")
        result[f"stack_{name}"], stack[name] = numbers[0], numbers[1:]
    result["stack_bare"], result["stack_features_over_bare"] = stack["features"]
    kitchen, tasks = {}, env.tasks_of("train")[: N * 4 : 4]
    for obs, name in (("features", "features"), ("pixels", "pixels64")):
        world = env.Kitchen(N, obs=obs, tasks=tasks)
        models = [env.scene_model(task.scene) for task in tasks]
        first, actions, controls = play(world, env.Operator(world), 40)
        numbers = race(world, models, first, actions, controls, f"kitchen {name}")
        result[f"kitchen_{name}"], kitchen[name] = numbers[0], numbers[1:]
    result["kitchen_bare"], result["kitchen_features_over_bare"] = kitchen["features"]

    world = env.Stack(N)
    person, states = env.Person(world, "A"), []
    for t in range(160):
        world.step(person.act())
        if t % 8 == 0:
            states.append(world.get_state())
    result["camera_fps_64"] = frames_a_second(states, 64)
    result["camera_fps_64_shadows"] = frames_a_second(states, 64, shadows=True)
    result["camera_fps_128"] = frames_a_second(states, 128)
    result["gl_fps_64"] = gl_frames_a_second(np.concatenate(states)[::8], 64)
    result["gl_fps_128"] = gl_frames_a_second(np.concatenate(states)[::8], 128)
    result = {key: None if v is None else round(float(v), 3) for key, v in result.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
