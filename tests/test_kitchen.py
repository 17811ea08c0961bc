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
        assert not kind["val"] & kind["train"]


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
            pushes = [SLOTS[s][1:] for s in scenes()[number].named if SLOTS[s][0] == "push"]
            for a, b in pushes[:1]:  # 6 cm apart, and the path is free
                assert env.gap(circles[a], circles[b][0]) > 0.06
                way = (xy[b] - xy[a]) / np.linalg.norm(xy[b] - xy[a])
                start = xy[a] - (env.reach(prints[a]) + 0.05) * way
                assert (np.abs(start - [0, 0.015]) < 0.23).all()  # within the gripper's reach
                others = [circles[k] for k in range(5) if k not in (a, b)]
                assert all(env.aside(circle, start, way)[0] > 0.045 for circle in others)


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
        actions = operator.act()
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


def test_robots_and_episodes_are_all_different():
    world = Kitchen(4, tasks=[ALL[0]] * 4, obs="features")
    first = world.get_state()[:, 1:32]
    world.reset()
    every = np.concatenate([first, world.get_state()[:, 1:32]])
    assert len({row.tobytes() for row in every}) == 8


def test_the_operator_does_not_draw_what_the_world_drew(monkeypatch):
    seeds, rng = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: seeds.append(seed) or rng(seed))
    world = Kitchen(100, tasks=[ALL[0]] * 100, obs="features")
    speed, place = Operator(world).script[:, 0, 5], world.place[:, :, 0]
    assert max(abs(np.corrcoef(speed, x)[0, 1]) for x in place.T) < 0.4
    assert len(set(seeds)) == len(seeds) == 200


def test_time_passes_for_those_robots_alone_that_are_stepped():
    """And for them as it does when all are."""
    tasks = tasks_of("train")[::90][:5]
    all_, some = (Kitchen(5, 3, "features", tasks=tasks) for _ in range(2))
    before, rng = some.get_state(), np.random.default_rng(0)
    for _ in range(6):
        actions = np.clip(all_.pose() + rng.uniform(-0.05, 0.05, (5, 7)), all_.low, all_.high)
        all_.step(actions)
        some.step(actions, [1, 4])
    np.testing.assert_array_equal(some.get_state()[[1, 4]], all_.get_state()[[1, 4]])
    np.testing.assert_array_equal(some.get_state()[[0, 2, 3]], before[[0, 2, 3]])
    assert some.t.tolist() == [0, 6, 0, 0, 6]
    pressed = before[:2].copy()
    pressed[:, 30] = 0.012  # a cap is down, and nobody has seen it yet
    world = Kitchen(2, 3, "features", tasks=tasks[:2])
    pressed[:, -1] = [task.scene for task in tasks[:2]]
    world.set_state(pressed)
    world.step(world.pose(), [1])
    np.testing.assert_array_equal(world.get_state([0])[0], pressed[0])


def test_an_episode_goes_on_from_its_middle_with_its_memory():
    task = next(t for t in ALL if t.family == "press")
    world = world_of(task)
    operator = Operator(world)
    while not world.achieved()[0, task.slot]:
        world.step(operator.act())
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
    there = np.array([[0.1, 0.1, 0.25, 0.2, -0.2, 1.3, 0.2]])
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
    tool, qpos = world.pose()[:, None, :3], world.physics.qpos
    turns = world.turn.reshape(2, 3, 3, 3)
    parts = (world.pose(), world.place, turns[:, :, :, :2], world.place - tool,
             world.physics.mocap - tool, qpos[:, 29:31])  # fmt: skip
    flat = np.concatenate([part.reshape(2, -1) for part in parts], 1)
    np.testing.assert_allclose(world.features(), flat, atol=1e-6)
    other = world.get_state()[:1]
    other[:, -1] = 999
    with pytest.raises(ValueError, match=r"states are of scenes \[999\]; there are 170"):
        world.render(other)


@pytest.mark.parametrize(("obs", "shape"), [("features", (51,)), ("pixels", (64, 64, 3))])
def test_none_of_the_robots_may_be_meant(obs, shape):
    world = Kitchen(2, obs=obs)
    assert world.reset([], tasks=[]).shape == (0, *shape)
    assert world.achieved([]).shape == (0, len(SLOTS))


# -- the operator


@pytest.mark.parametrize("family", env.FAMILIES)
def test_the_operator_succeeds_in_97_of_100_episodes(family):
    tasks = [task for task in ALL if task.family == family] * 2  # 300
    world = Kitchen(len(tasks), seed=1, tasks=tasks, obs="features")
    operator = Operator(world)
    done, ended = np.zeros(world.n, bool), np.zeros(world.n, bool)
    for _ in range(world.horizon):
        actions = operator.act()
        new = operator.ended & ~ended
        done[new] = world.succeeded()[new]
        ended |= operator.ended
        world.step(actions, np.flatnonzero(~ended))  # the others stay as they are
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


def test_a_button_pressed_off_its_middle_is_kept_up_by_its_walls():
    tasks = [task for task in tasks_of("train") if task.family == "press"][:40]
    button = [SLOTS[task.slot][1] for task in tasks]

    def pressed(off):
        world, angle = Kitchen(len(tasks), 0, "features", tasks=tasks), np.arange(len(tasks))
        action = world.pose()
        action[:, :2] = world.buttons[range(len(tasks)), button, :2]
        action[:, :2] += off * np.stack([np.cos(angle), np.sin(angle)], 1)
        action[:, 5:] = 0
        for z in [0.1] * 10 + [0.06, 0.03] + [0.012] * 5:
            action[:, 2] = z
            world.step(action)
        return world.succeeded().mean()

    assert pressed(0.003) == 1
    assert pressed(0.006) < 0.5  # the fingertips are 22 mm by 24, the walls 29 to 34 mm apart
    assert pressed(0.012) == 0


def test_pressing_the_other_button_is_another_task():
    world, _, (button,) = stage_scene("press")
    operator = Operator(world)
    operator.slot[0] = ("press", 1 - button)
    for _ in range(20):
        _, reward, _, _ = world.step(operator.act())
    assert achieved(world) == {("press", 1 - button)}
    assert reward == [0]  # not what was asked for
    assert world.useful() == [True]  # but useful


def run_until(world, operator, phase):
    while operator.phase[0] < phase:
        world.step(operator.act())


def test_grasp_means_held_5_cm_up():
    world, _, (thing,) = stage_scene("grasp")
    operator = Operator(world)
    run_until(world, operator, 3)
    assert world.touching()[0, 1:3, thing].all()  # gripped, not lifted
    assert not achieved(world)
    height = []
    while operator.phase[0] == 3 and len(height) < 30:
        height.append(world.place[0, thing, 2])
        assert (("grasp", thing) in achieved(world)) == (height[-1] > 0.05)
        world.step(operator.act())
    assert min(height) < 0.05 < max(height)
    there = world.get_state()
    for jaw in (0, 1):
        state = there.copy()
        state[0, 7 + jaw] = 0.05  # it alone opens
        world.set_state(state)
        assert world.touching()[0, 1:3, thing].tolist() == [jaw == 1, jaw == 0]
        assert ("grasp", thing) not in achieved(world)
    world.set_state(there)
    assert ("grasp", thing) in achieved(world)
    world.judge_anew([0])
    assert ("grasp", thing) not in achieved(world)  # it is no higher than where it was then
    world.set_state(state)
    wide = hold(world)
    wide[0, 6] = 0.9
    for _ in range(4):
        world.step(wide)  # let fall
    assert ("grasp", thing) not in achieved(world)


def test_in_the_air_without_a_hand_is_not_grasped():
    world, _, (thing,) = stage_scene("grasp")
    rearrange(world, {thing: [0.15, 0.1, 0.15]})
    assert not achieved(world)


def test_pressing_on_it_where_it_stands_on_another_is_not_grasped():
    solid = ("jar", "can", "carton")
    kinds = lambda t: [kitchenware()[o].kind in solid for o in scenes()[t.scene].objects]
    world, task, (thing,) = stage_scene("grasp", lambda t: sum(kinds(t)) >= 2)
    under = next(k for k in range(3) if k != thing and kinds(task)[k])
    for height in np.arange(0.2, 0.05, -0.0004):  # set it down on the other one
        rearrange(world, {thing: [0, -0.06, height], under: [0, -0.06, 0]})
        if world.touching()[0, 4, thing + under - 1]:
            break
    state = world.get_state()
    state[0, 7:9] = 0  # closed jaws
    for z in np.arange(0.33, 0.05, -0.0004):  # and press on it
        state[0, 1:4] = 0, -0.06, z
        world.set_state(state)
        if world.touching()[0, 1:3, thing].all():
            break
    assert world.touching()[0, 1:3, thing].all()
    assert world.place[0, thing, 2] - world.start[0, 3 * thing + 2] > 0.05
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


def test_who_is_judged_anew_does_not_go_on_with_what_was_done_before():
    """Pushed 3.9 cm, then 1 cm more: a push at once, none in two episodes; 4.1 cm more is one."""
    world, i, j, pair = push_scene()
    start = world.start[0].reshape(3, 3).copy()
    rearrange(world, {i: start[i] + [0.039, 0, 0]}, {pair: 1, DEPTH: 0.012})
    assert achieved(world) == {("press", 0)}
    for anew in (False, True):
        if anew:
            rearrange(world, {i: start[i] + [0.039, 0, 0]})
            world.judge_anew([0])
            assert not achieved(world)  # the button was pressed before, too
        rearrange(world, {i: start[i] + [0.049, 0, 0]}, {pair: 1})
        assert (("push", i, j) in achieved(world)) != anew
    rearrange(world, {i: start[i] + [0.080, 0, 0]}, {pair: 1})
    assert achieved(world) == {("push", i, j)}


def test_objects_that_touch_already_when_judging_begins_are_pushed_only_once_they_have_parted():
    world, i, j, pair = push_scene()
    start, gap = world.start[0].reshape(3, 3).copy(), 0.2
    while not world.touching()[0, 4, pair - TOUCHED]:
        gap -= 0.0005
        rearrange(world, {j: start[j], i: start[j] + [gap, 0, 0]})
    world.judge_anew([0])
    for apart, counts in ((0.0, False), (0.05, False), (0.0, True)):
        rearrange(world, {j: start[j], i: start[j] + [gap + apart, 0, 0]})
        world.step(world.pose().astype(np.float32))
        assert (world.memory[0, pair] > 0) == counts
        rearrange(world, {i: start[j] + [gap + 0.05, 0, 0]})  # 5 cm away from the other
        assert (("push", i, j) in achieved(world)) == counts


def test_two_millimetres_beside_is_not_touching():
    world, i, j, _ = push_scene()
    start, seen = world.start[0].reshape(3, 3), []
    for gap in np.arange(0.2, 0, -0.0005):  # from afar, half a millimetre at a time
        rearrange(world, {j: start[j], i: start[j] + [gap, 0, 0]})
        distance = world.contacts[0, 4, i + j - 1]
        if distance[0]:
            seen.append(distance[1])
            assert world.touching()[0, 4, i + j - 1] == (distance[1] < 1e-3)
        if seen and seen[-1] < 0:
            break
    assert max(seen) > 0.002  # it was noticed before it touched
    assert min(seen) < 0


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
        ("sliding across it", (0, 0, 0), 0.1, (0.1, 0, 0)),
        ("never lifted", (0, 0, 0), 0.029, 0),
    ],
)
def test_what_is_not_placed(miss, shift, rise, velocity):
    world, i, _, on = flat_place()
    rearrange(world, {i: on + shift}, {RISE + i: rise}, velocity and (i, velocity))
    assert not achieved(world), miss


def test_not_placed_on_its_rim():
    world, i, j, on = flat_place()
    for height in np.arange(0.01, 0, -0.0004):  # it comes down, half beside the tray
        rearrange(world, {i: on + [0, 0.075, height]}, {RISE + i: 0.1})
        if world.touching()[0, 4, i + j - 1]:
            break
    assert world.touching()[0, 4, i + j - 1]
    assert not achieved(world)


def test_not_placed_while_it_is_held_there():
    world, i, j, _ = flat_place()
    operator, held_there = Operator(world), 0
    run_until(world, operator, 5)
    shut = operator.script[0, 5].copy()
    for _ in range(15):
        operator.script[0, 6:, 4] = 0  # do not let go
        operator.script[0, 5, 3] = 0.004  # and press it down
        world.step(operator.act())
        if world.touching()[0, 0, i] and world.touching()[0, 4, i + j - 1]:
            held_there += 1
        assert ("place", i, j) not in achieved(world)
    assert shut[4] == 0
    assert held_there > 0


def test_not_placed_under_it():
    world, i, j, on = flat_place()
    x, y, _ = on
    for height in np.arange(0.14, 0, -0.0004):  # the tray comes down on the jar
        rearrange(world, {i: [x, y, 0], j: [x, y, height]}, {RISE + i: 0.1})
        if world.touching()[0, 4, i + j - 1]:
            break
    assert world.touching()[0, 3, i]
    assert ("place", i, j) not in achieved(world)


def test_only_what_makes_sense_counts():
    """Where a spoon lies, sliding it to something is no task, though all else be fulfilled."""
    spoon = lambda t: "spoon" in [kitchenware()[o].kind for o in scenes()[t.scene].objects]
    world, task, _ = stage_scene("press", spoon)
    kinds = [kitchenware()[o].kind for o in scenes()[task.scene].objects]
    i = kinds.index("spoon")
    j = (i + 1) % 3
    start = world.start[0].reshape(3, 3)
    rearrange(world, {i: start[i] + [0.05, 0, 0]}, {TOUCHED + i + j - 1: 1})
    assert not world.allowed[0, SLOTS.index(("push", i, j))]
    assert ("push", i, j) not in achieved(world)


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
    with pytest.raises(ValueError, match="n is 0; expected a whole number"):
        Kitchen(0)
    with pytest.raises(ValueError, match="size is 500"):
        Kitchen(1, size=500, obs="features")
    with pytest.raises(ValueError, match="0 tasks for 1 robot"):
        Kitchen(1, tasks=[])


def test_a_task_that_is_none_is_refused_and_changes_nothing():
    world = world_of(ALL[0])
    before = world.get_state()
    senseless = int(np.flatnonzero(~scenes()[0].allowed)[0])
    for task, fault in (
        ((999, 0), "scene is 999; expected a whole number from 0 to 169"),
        ((-1, 0), "scene is -1"),
        ((0, 17), "slot is 17"),
        ((0, senseless), "makes no sense in scene 0"),
    ):
        with pytest.raises(ValueError, match=fault):
            world.reset([0], [task])
    assert world.tasks == [ALL[0]]
    np.testing.assert_array_equal(world.get_state(), before)
