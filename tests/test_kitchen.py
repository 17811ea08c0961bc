"""The kitchen: 600 tasks that can be told apart, and predicates that near-misses do not fool."""

from collections import Counter

import numpy as np
import pytest

import env
from env import SLOTS, Kitchen, Operator, kitchenware, scenes, tasks_of

ALL = [task for split in env.SPLITS for task in tasks_of(split)]


# -- tasks


def test_there_are_520_and_40_and_40_tasks_balanced_over_four_families():
    for split, count in (("train", 520), ("val", 40), ("test", 40)):
        families = Counter(task.family for task in tasks_of(split))
        assert families == dict.fromkeys(env.FAMILIES, count // 4)


def test_no_two_tasks_are_the_same():
    assert len({task.what for task in ALL}) == 600


def test_what_is_in_a_test_task_is_in_no_other():
    objects, buttons = {}, {}
    for split in env.SPLITS:
        mine = [scene for scene in scenes() if scene.split == split]
        objects[split] = {o for scene in mine for o in scene.objects}
        buttons[split] = {b for scene in mine for b in scene.buttons}
    for kind in (objects, buttons):
        assert not kind["test"] & (kind["train"] | kind["val"])


def test_kitchenware_is_many_and_various():
    used = {o for scene in scenes() for o in scene.objects}
    assert len(used) > 200
    assert len({kitchenware()[o].kind for o in used}) == 16
    looks = {str([shape[1:] for shape in piece.shapes]) for piece in kitchenware()}
    assert len(looks) == len(kitchenware())


def test_every_scene_allows_four_tasks_and_more():
    for scene in scenes():
        assert len(set(scene.objects)) == 3
        assert len(set(scene.buttons)) == 2
        assert scene.allowed.sum() >= 8
        assert {SLOTS[k][0] for k in np.flatnonzero(scene.allowed)} == set(env.FAMILIES)
        assert scene.allowed[list(scene.named)].all()


def test_the_buttons_of_a_scene_differ_in_colour():
    colours = np.array([button[3] for button in env.tables()["buttons"]])
    pairs = np.array([scene.buttons for scene in scenes()])
    assert np.linalg.norm(colours[pairs[:, 0]] - colours[pairs[:, 1]], axis=1).min() > 0.4


def test_arrangements_are_new_each_time_apart_and_in_sight():
    for number in range(0, len(scenes()), 10):
        drawn = [env.arrange(number, np.random.default_rng(k)) for k in range(3)]
        assert len({xy.tobytes() for xy, _ in drawn}) == 3
        for xy, yaw in drawn:
            prints = [kitchenware()[o].circles for o in scenes()[number].objects]
            circles = [env.turned(p, xy[k : k + 1], yaw[k : k + 1]) for k, p in enumerate(prints)]
            circles += [np.array([[[*xy[k], 0.043]]]) for k in (3, 4)]
            for i in range(5):
                assert (np.abs(circles[i][0, :, :2]) < 0.25).all()
                for j in range(i):
                    assert env.gap(circles[i], circles[j][0]) > 0.03


# -- the world


def world_of(task, n=1, **options):
    return Kitchen(n, tasks=[task] * n, obs="features", **options)


def hold(world):
    """An action that stays where it is."""
    return np.clip(world.pose().astype(float), world.low, world.high)


def test_nothing_moves_by_itself():
    world = Kitchen(60, tasks=ALL[:520:9][:58] + ALL[-2:], obs="features")
    before, stay = world.place.copy(), hold(world)
    for _ in range(30):
        world.step(stay)
    assert np.abs(world.place - before).max() < 0.002
    assert not world.useful().any()  # the filter F: nothing was done


def test_scenes_side_by_side_are_as_each_alone():
    tasks = [ALL[0], ALL[250], ALL[599]]
    world = Kitchen(3, tasks=tasks, obs="features", seed=4)
    states = world.get_state()
    operator = Operator(world)
    alone = [Kitchen(1, tasks=[task]) for task in tasks]
    for one, state in zip(alone, states, strict=True):
        one.set_state(state[None])
    for _ in range(15):
        actions, _ = operator.act()
        world.step(actions)
        for one, action in zip(alone, actions, strict=True):
            one.step(action[None])
    np.testing.assert_array_equal(world.get_state(), np.concatenate([w.get_state() for w in alone]))
    np.testing.assert_array_equal(world.pixels(), np.concatenate([w.observe() for w in alone]))


def test_new_tasks_for_some_leave_the_others_where_they_are():
    world = Kitchen(3, tasks=ALL[:3], obs="features")
    world.step(hold(world))
    before = world.get_state()
    world.reset([1], [ALL[599]])
    np.testing.assert_array_equal(world.get_state([0, 2]), before[[0, 2]])
    assert world.tasks == [ALL[0], ALL[599], ALL[2]]
    fresh = Kitchen(1, tasks=[ALL[599]], obs="features")
    fresh.set_state(world.get_state([1]))
    world.step(hold(world))
    fresh.step(hold(fresh))
    np.testing.assert_array_equal(world.get_state([1]), fresh.get_state())


def test_an_episode_goes_on_from_its_middle_with_its_memory():
    task = next(t for t in ALL if t.family == "press")
    world = world_of(task)
    operator = Operator(world)
    while not world.achieved()[0, task.slot]:
        world.step(operator.act()[0])
    again = world_of(task, seed=7)
    again.set_state(world.get_state())
    assert again.achieved()[0, task.slot]  # though the button has long come up again
    for _ in range(5):
        stay = hold(world)
        world.step(stay)
        again.step(stay)
    np.testing.assert_array_equal(again.get_state(), world.get_state())


def test_the_servo_goes_to_the_pose_but_not_at_once():
    world = world_of(ALL[0])
    there = np.array([[0.1, 0.1, 0.25, 0.2, -0.2, 1.0, 0.2]])
    start, steps = world.pose()[0], []
    for _ in range(12):
        before = world.pose()[0]
        world.step(there)
        steps.append(np.abs(world.pose()[0] - before))
    assert (np.max(steps, 0) < 1.25 * Kitchen.REACH).all()
    assert np.abs(there[0] - start).max() > 2 * 0.5  # it had farther to go than one step
    np.testing.assert_allclose(world.pose(), there, atol=0.02)


def test_images_and_features():
    world = Kitchen(2, size=100)
    assert world.observe().shape == (2, 100, 100, 3)
    assert world.pose().shape == (2, 7)
    assert world.features().shape == (2, 51)
    np.testing.assert_allclose(world.features()[:, :7], world.pose())


# -- the operator


@pytest.mark.parametrize("family", env.FAMILIES)
def test_the_operator_succeeds_in_97_of_100_episodes(family):
    tasks = [task for task in ALL if task.family == family]  # 150
    world = Kitchen(len(tasks), seed=1, tasks=tasks, obs="features")
    operator, slots = Operator(world), [task.slot for task in tasks]
    done, ended = np.zeros(world.n, bool), np.zeros(world.n, bool)
    for _ in range(world.horizon):
        actions, end = operator.act()
        new = end & ~ended
        done[new] = world.achieved()[np.arange(world.n), slots][new]
        ended |= end
        world.step(actions)
    assert done.mean() >= 0.97


# -- what counts, and what nearly does


def stage_scene(family, kinds=None):
    """A world of a training task, its objects and the slots by name, ready to be rearranged."""
    task = next(t for t in tasks_of("train") if t.family == family and (not kinds or kinds(t)))
    world = world_of(task)
    return world, task, SLOTS[task.slot][1:]


def rearrange(world, poses=None, memory=None, velocity=None):
    """Put objects (number: x, y, z) and the episode's memory (row: value), then look again."""
    state = world.get_state()
    nq = world.physics.model.nq
    for number, xyz in (poses or {}).items():
        state[0, 9 + 7 * number : 12 + 7 * number] = xyz
        state[0, 12 + 7 * number : 16 + 7 * number] = [1, 0, 0, 0]
    state[0, 1 + nq :][: 2 * world.physics.model.nv] = 0
    if velocity:
        state[0, 1 + nq + 8 + 6 * velocity[0] :][:3] = velocity[1]
    for row, value in (memory or {}).items():
        state[0, -env.MEMORY + row] = value
    world.set_state(state)


def achieved(world):
    return {SLOTS[k] for k in np.flatnonzero(world.achieved()[0])}


RISE, DEPTH, TOUCHED = 9, 12, 14  # rows of the memory


def test_press_means_the_cap_went_down_three_quarters():
    world, _, (button,) = stage_scene("press")
    rearrange(world, memory={DEPTH + button: 0.0089})
    assert not achieved(world)
    rearrange(world, memory={DEPTH + button: 0.0091})
    assert achieved(world) == {("press", button)}


def test_pressing_the_other_button_is_another_task():
    world, _, (button,) = stage_scene("press")
    operator = Operator(world)
    operator.slot[0] = ("press", 1 - button)
    for _ in range(20):
        _, reward, _, _ = world.step(operator.act()[0])
    assert achieved(world) == {("press", 1 - button)}
    assert reward == [0]  # not what was asked for
    assert world.useful() == [True]  # but useful


def run_until(world, operator, phase):
    while operator.phase[0] < phase:
        world.step(operator.act()[0])


def test_grasp_means_held_5_cm_up():
    world, _, (thing,) = stage_scene("grasp")
    operator = Operator(world)
    run_until(world, operator, 3)
    assert world.held[0, thing] > 0  # gripped, not lifted
    assert not achieved(world)
    height = []
    while operator.phase[0] == 3 and len(height) < 30:
        height.append(world.place[0, thing, 2])
        assert (("grasp", thing) in achieved(world)) == (height[-1] > 0.05)
        world.step(operator.act()[0])
    assert min(height) < 0.05 < max(height)
    wide = hold(world)
    wide[0, 6] = 0.9
    for _ in range(4):
        world.step(wide)  # let fall
    assert ("grasp", thing) not in achieved(world)


def test_in_the_air_without_a_hand_is_not_grasped():
    world, _, (thing,) = stage_scene("grasp")
    rearrange(world, {thing: [0.15, 0.1, 0.15]})
    assert not achieved(world)


def push_scene():
    world, _, (i, j) = stage_scene("push")
    return world, i, j, TOUCHED + i + j - 1


@pytest.mark.parametrize(
    ("miss", "distance", "other", "rise", "touched"),
    [
        ("never touched the other", 0.06, 0, 0, 0),
        ("hardly moved", 0.039, 0, 0, 1),
        ("was lifted on the way", 0.06, 0, 0.031, 1),
        ("was itself pushed by the other", 0.06, 0.061, 0, 1),
    ],
)
def test_what_is_not_pushed(miss, distance, other, rise, touched):
    world, i, j, pair = push_scene()
    start = world.start[0].reshape(3, 3)
    memory = {RISE + i: rise, pair: touched}
    poses = {i: start[i] + [distance, 0, 0], j: start[j] + [other, 0, 0]}
    rearrange(world, poses, memory)
    assert ("push", i, j) not in achieved(world), miss


def test_pushed_means_slid_4_cm_to_the_other():
    world, i, j, pair = push_scene()
    start = world.start[0].reshape(3, 3)
    rearrange(world, {i: start[i] + [0.041, 0, 0]}, {pair: 1})
    assert achieved(world) == {("push", i, j)}


def flat_place():
    """A task of putting something on a tray, plate or board, and where it then lies."""
    flat = lambda t: kitchenware()[t.what[2]].kind in ("tray", "board")
    slim = lambda t: kitchenware()[t.what[1]].kind in ("jar", "can", "carton", "shaker")
    world, task, (i, j) = stage_scene("place", lambda t: flat(t) and slim(t))
    x, y, z = world.start[0].reshape(3, 3)[j]
    return world, i, j, np.array([x, y, z + kitchenware()[task.what[2]].floor - 1e-4])


def test_placed_means_let_go_and_at_rest_on_the_other():
    world, i, j, on = flat_place()
    rearrange(world, {i: on}, {RISE + i: 0.1})
    assert achieved(world) == {("place", i, j)}


@pytest.mark.parametrize(
    ("miss", "shift", "rise", "velocity"),
    [
        ("above it", (0, 0, 0.02), 0.1, 0),
        ("beside it", (0.16, 0, -0.01), 0.1, 0),
        ("on its rim", (0.0, 0.075, 0.01), 0.1, 0),
        ("sliding across it", (0, 0, 0), 0.1, (0.1, 0, 0)),
        ("never lifted", (0, 0, 0), 0.029, 0),
    ],
)
def test_what_is_not_placed(miss, shift, rise, velocity):
    world, i, _, on = flat_place()
    rearrange(world, {i: on + shift}, {RISE + i: rise}, velocity and (i, velocity))
    assert not achieved(world), miss


def test_not_placed_while_it_is_held_there():
    world, i, j, _ = flat_place()
    operator, held_there = Operator(world), 0
    run_until(world, operator, 5)
    shut = operator.script[0, 5].copy()
    for _ in range(15):
        operator.script[0, 6:, 4] = 0  # do not let go
        world.step(operator.act()[0])
        if world.held[0, i] and world.touch[0, i + j - 1]:
            held_there += 1
        assert ("place", i, j) not in achieved(world)
    assert shut[4] == 0
    assert held_there > 0


def test_only_what_makes_sense_counts():
    world, i, j, _ = flat_place()
    back = SLOTS.index(("place", j, i))
    assert not scenes()[world.tasks[0].scene].allowed[back]
    assert not world.allowed()[0, back]


# -- bad input


def test_bad_actions_are_refused():
    world = world_of(ALL[0])
    before = world.get_state()
    for column, value in ((0, 0.3), (2, 0.0), (6, 1.2), (5, np.nan)):
        action = hold(world)
        action[0, column] = value
        with pytest.raises(
            ValueError, match=rf"action {column} of robot 0 is .*; expected a number"
        ):
            world.step(action)
    with pytest.raises(ValueError, match=r"expected \(1, 7\)"):
        world.step(np.zeros((1, 9)))
    np.testing.assert_array_equal(world.get_state(), before)


def test_bad_states_and_options_are_refused():
    world = world_of(ALL[0])
    with pytest.raises(ValueError, match=r"expected \(1, 112\)"):
        world.set_state(np.zeros((1, 66)))
    elsewhere = world_of(ALL[599]).get_state()
    with pytest.raises(ValueError, match="a state of scene 169, but robot 0 stands in scene 0"):
        world.set_state(elsewhere)
    with pytest.raises(ValueError, match="1 to 50"):
        Kitchen(1, horizon=51)
    with pytest.raises(ValueError, match="2 tasks for 1 robot"):
        world.reset(tasks=ALL[:2])
    with pytest.raises(ValueError, match="one robot or more"):
        Kitchen(0)
