"""The stacking world: MuJoCo's own physics, the real arm's numbers, rewards that mean it."""

import mujoco
import numpy as np
import pytest

import env
from env import HALF, Stack


@pytest.fixture(scope="module")
def world():
    return Stack(4)


def actions_of(world, steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, world.n, 9))


def put(world, a, b=(0.2, 0, HALF, 1, 0, 0, 0), hand=None, velocity=(0,) * 6):
    """Robot 0 with blocks at given poses (position, quaternion), its arm home or as given."""
    state = world.get_state([0])
    model, qvel = world.model, state[0, 24:]
    state[:, 1:10] = Stack.HOME if hand is None else hand
    state[:, 10:17], state[:, 17:24] = np.resize([*a, 1, 0, 0, 0], 7) if len(a) == 3 else a, b
    qvel[: 2 * model.nv] = 0
    qvel[9:15] = velocity
    world.set_state(state, [0])
    return world.stage([0])[0]


ON_TOP = (0.2, 0, 3 * HALF - 1e-4)  # where block A rests on block B of `put`


# -- physics


def test_the_batch_does_what_a_plain_loop_of_mj_step_does(world):
    world.reset()
    datas = [mujoco.MjData(world.model) for _ in range(world.n)]
    for data, state in zip(datas, world.get_state(), strict=True):
        data.qpos = state[1:24]
    for actions in actions_of(world, 20):
        world.step(actions)
        for data, action in zip(datas, actions, strict=True):
            data.ctrl = action * world.speed
            mujoco.mj_step(world.model, data, 10)
    qpos = np.stack([data.qpos for data in datas])
    np.testing.assert_array_equal(world.physics.qpos, qpos)


def test_a_robot_does_not_notice_its_neighbours():
    few, many = Stack(2, seed=5), Stack(5, seed=5)
    many.reset([3, 4])  # what these do is no business of robots 0 and 1
    for actions in actions_of(many, 12):
        few.step(actions[:2])
        many.step(actions)
    few.reset([0])
    many.reset([0, 2])
    np.testing.assert_array_equal(few.get_state(), many.get_state()[:2])
    np.testing.assert_array_equal(few.features(), many.features()[:2])


def test_robots_and_episodes_are_all_different():
    world = Stack(6, seed=1)
    first = world.get_state()[:, 1:24]
    world.reset()
    every = np.concatenate(
        [first, world.get_state()[:, 1:24], Stack(6, seed=2).get_state()[:, 1:24]]
    )
    assert len({row.tobytes() for row in every}) == 18
    yaw = np.arctan2(every[:, [15, 22]], every[:, [12, 19]])  # of half the angle
    assert yaw.std() > 0.5
    assert every[:, 9:11].std() > 0.01
    assert np.linalg.norm(every[:, 9:11] - every[:, 16:18], axis=1).min() >= 0.09


def test_ids_are_numbers_or_a_mask(world):
    world.reset()
    before = world.get_state()
    for nobody in ([], np.zeros(4, bool), np.zeros(0, int)):
        assert len(world.reset(nobody)) == 0
    np.testing.assert_array_equal(world.get_state(), before)
    world.reset(np.array([True, False, True, False]))
    changed = (world.get_state() != before).any(1)
    assert changed.tolist() == [True, False, True, False]


def test_resetting_some_leaves_the_others_where_they_are(world):
    world.reset()
    world.step(actions_of(world, 1)[0])
    before = world.get_state()
    world.reset([1, 2])
    np.testing.assert_array_equal(world.get_state([0, 3]), before[[0, 3]])
    assert (world.t == [1, 0, 0, 1]).all()
    assert (world.get_state([1, 2])[:, 10:13] != before[[1, 2], 10:13]).any(1).all()


def test_an_episode_goes_on_bit_for_bit_from_any_of_its_moments(world):
    """Here from the middle of a grip: contacts depend on what the solver did before."""
    world.reset()
    person, actions = env.Person(world, "A"), actions_of(world, 15) / 5
    while (person.phase < 5).any():
        world.step(person.act())
    middle = world.get_state()
    rest = [world.step(a) for a in actions]
    other = Stack(4, seed=99)
    other.set_state(middle[::-1])  # in another world, by other robots
    for a, (obs, reward, _, _) in zip(actions, rest, strict=True):
        obs_again, reward_again, _, _ = other.step(a[::-1])
        np.testing.assert_array_equal(obs_again[::-1], obs)
        np.testing.assert_array_equal(reward_again[::-1], reward)
    np.testing.assert_array_equal(other.get_state()[::-1], world.get_state())


# -- the arm


def test_the_arm_has_the_real_arms_link_lengths(world):
    """Forward kinematics by the manufacturer's Denavit-Hartenberg table, joint by joint."""
    D1, D2, D3, D4, D5, D6, e2 = 0.2755, 0.41, 0.2073, 0.0741, 0.0741, 0.16, 0.0098
    s = np.sin(np.deg2rad(30)) / np.sin(np.deg2rad(60))
    a = [0, D2, 0, 0, 0, 0]
    d = [D1, 0, -e2, -(D3 + s * D4), -s * (D4 + D5), -(s * D5 + D6)]
    alpha = np.deg2rad([90, 180, 90, 60, 60, 180])
    sign, offset = [-1, 1, 1, 1, 1, 1], np.deg2rad([0, -90, 90, 0, -180, 90])
    data = mujoco.MjData(world.model)
    hands = []
    for q in np.random.default_rng(0).uniform(1, 5, (5, 6)):
        T = np.eye(4)
        for k in range(6):
            c, z = np.cos(sign[k] * q[k] + offset[k]), np.sin(sign[k] * q[k] + offset[k])
            ca, sa = np.cos(alpha[k]), np.sin(alpha[k])
            T = T @ [
                [c, -z * ca, z * sa, a[k] * c],
                [z, c * ca, -c * sa, a[k] * z],
                [0, sa, ca, d[k]],
                [0, 0, 0, 1],
            ]
        data.qpos[:6] = q
        mujoco.mj_kinematics(world.model, data)
        hand = data.body("hand")
        tip = hand.xpos + hand.xmat.reshape(3, 3) @ [0, 0, -0.16] - data.body("base").xpos
        hands.append((T[:3, 3], tip))
    table, ours = map(np.array, zip(*hands, strict=True))
    np.testing.assert_allclose(ours, table, atol=2e-3)  # both round to a millimetre


def test_the_arm_has_the_real_arms_mass_ranges_and_speeds(world):
    model = world.model
    arm = model.body_subtreemass[model.body("base").id]
    assert arm == pytest.approx(4.31, abs=0.02)
    np.testing.assert_allclose(np.rad2deg(model.jnt_range[1]), [47, 313], atol=0.01)
    np.testing.assert_allclose(np.rad2deg(model.jnt_range[2]), [19, 341], atol=0.01)
    np.testing.assert_allclose(np.rad2deg(world.speed[:6]), [36] * 3 + [48] * 3, atol=0.1)


def test_zero_velocity_holds_still(world):
    world.reset()
    before = world.pinch.copy()
    for _ in range(50):
        world.step(np.zeros((4, 9)))
    assert np.abs(world.pinch - before).max() < 1e-4


@pytest.mark.parametrize("joint", range(9))
def test_a_full_action_reaches_the_joints_speed_and_no_more(world, joint):
    world.reset()
    actions = np.zeros((4, 9))
    actions[:, joint] = -1 if joint == 1 else 1  # upwards: away from the table
    fastest = 0
    for _ in range(10):
        world.step(actions)
        fastest = np.maximum(fastest, np.abs(world.physics.qvel[:, joint]))
    assert (fastest < 1.02 * world.speed[joint]).all()
    np.testing.assert_allclose(fastest, world.speed[joint], rtol=0.02 if joint < 6 else 0.1)


def test_fingers_close_together_at_any_speed(world):
    for speed in (0.3, 0.6, 1):
        world.reset()
        actions = np.zeros((4, 9))
        actions[:, 6:] = speed
        start = world.physics.qpos[:, 6:9].copy()
        for _ in range(5):
            world.step(actions)
        moved = world.physics.qpos[:, 6:9] - start
        assert (moved > 0.1 * speed).all()
        np.testing.assert_allclose(moved, moved[:, :1].repeat(3, 1), rtol=0.15)


def test_a_grasped_block_is_lifted_and_not_shoved_aside(world):
    person = env.Person(world, "A")
    put(world, (0, 0, HALF))
    hand = Stack.HOME.copy()
    low = np.array([4.9593, 4.0054, 1.1723, 3.2319, 5.9254, 5.0493])
    hand[:6], hand[6:] = low, 0.85
    put(world, (0, 0, HALF), hand=hand)
    put(world, (*person.tool()[0, :2], HALF), hand=hand)
    assert np.abs(person.tool()[0, 2] - HALF) < 0.01
    start = world.block_a[0][0].copy()
    close = np.zeros((4, 9))
    close[:, 6:] = 1
    for _ in range(20):
        world.step(close)
    assert world.arm_a[0] > 0
    assert np.linalg.norm((world.block_a[0][0] - start)[:2]) < 0.008
    close[:, 1] = -0.5
    for _ in range(20):
        world.step(close)
    assert world.block_a[0][0, 2] > 0.06
    assert world.stage([0])[0] == 2


# -- the reward


def test_stacked_means_released_and_at_rest_on_the_other_block(world):
    assert put(world, ON_TOP) == 3
    for _ in range(20):
        world.step(np.zeros((4, 9)))
        assert world.stage([0])[0] == 3  # and stays so


@pytest.mark.parametrize(
    ("miss", "a", "velocity"),
    [
        ("hovering 2 mm above", (0.2, 0, 3 * HALF + 0.002), 0),
        ("pressed 6 mm in", (0.2, 0, 3 * HALF - 0.006), 0),
        ("beside", (0.2 - 2 * HALF - 0.001, 0, HALF), 0),
        ("half over the edge", (0.2 + 1.1 * HALF, 0, 3 * HALF - 1e-4), 0),
        ("tilted", (0.2, 0, 3 * HALF + 0.004, np.cos(0.1), np.sin(0.1), 0, 0), 0),
        ("on its way", ON_TOP, (0.03, 0, 0, 0, 0, 0)),
        ("falling onto it", ON_TOP, (0, 0, -0.1, 0, 0, 0)),
        ("spinning", ON_TOP, (0, 0, 0, 0, 0, 1)),
        ("knocked off", (0.2 + 2.5 * HALF, 0.03, HALF), 0),
    ],
)
def test_what_is_not_stacked(world, miss, a, velocity):
    assert put(world, a, velocity=velocity or (0,) * 6) == 0, miss


def test_not_stacked_while_the_hand_holds_it_on_the_other_block(world):
    world.reset()
    person, keep = env.Person(world, "A"), np.zeros(world.n, bool)
    person.script[:, 9, 3] = 0.048  # press it down on the other block
    grip = np.array([0] * 6 + [1] * 3)
    held_there = 0
    for _ in range(world.horizon):
        actions = person.act()
        keep |= person.phase == 10  # about to let go, but does not
        world.step(np.where(keep[:, None], grip, actions))
        rests = (world.a_on_b[:, 0] > 0) & (np.linalg.norm(world.block_a[2], axis=1) < 0.01)
        held_there += (rests & keep).sum()
        assert (world.stage() < 3).all()
    assert held_there > 50


def test_not_stacked_while_any_part_of_the_arm_leans_on_it(world):
    """The red block on the blue one, moved under the wrist."""
    put(world, ON_TOP)
    wrist = world.physics.batch.body("link5").xpos[0]
    x, y, _ = wrist
    low = Stack.HOME.copy()
    for down in np.linspace(0, 1.2, 200):  # lower the arm until the wrist touches
        low[1] = Stack.HOME[1] + down
        stage = put(world, (x, y, 3 * HALF - 1e-4), b=(x, y, HALF, 1, 0, 0, 0), hand=low)
        if world.arm_a[0, 0] > 0:
            break
    assert world.arm_a[0, 0] > 0
    assert world.a_on_b[0, 0] > 0
    assert stage < 3


def test_not_stacked_if_the_lower_block_lies_on_its_edge(world):
    turn = (np.cos(np.pi / 8), np.sin(np.pi / 8), 0, 0)
    edge = (0.2, 0, HALF * np.sqrt(2), *turn)
    assert put(world, (0.2, 0, HALF * np.sqrt(2) * 2), b=edge) == 0


def test_lifted_means_held_3_cm_above_the_table(world):
    """Of a demonstration, judged anew: touching is not lifting, and the lowest corner counts."""
    person = env.Person(world, "B", seed=1)
    world.reset()
    touching = lifted = 0
    tilted = []
    for _ in range(world.horizon):
        world.step(person.act())
        a, turn, _ = world.block_a
        corners = np.array(np.meshgrid(*[[-HALF, HALF]] * 3)).reshape(3, 8)
        low = (turn.reshape(-1, 3, 3) @ corners)[:, 2].min(1) + a[:, 2]
        held = world.arm_a[:, 0] > 0
        assert ((world.stage() == 2) == (held & (low > 0.03))).all()
        touching += (held & (low < 0.03)).sum()
        lifted += (held & (low > 0.03)).sum()
        tilted += list(world.get_state()[held & (low > 0.03) & (low < 0.038)])
    assert touching > 20
    assert lifted > 20
    for state in tilted:  # on a corner, 1 cm lower
        state[13:17] = np.cos(np.pi / 8), np.sin(np.pi / 8), 0, 0
        world.set_state(state[None], [0])
        assert world.arm_a[0, 0] > 0
        assert world.stage([0]) != 2
    assert tilted


def test_thrown_up_is_not_lifted(world):
    assert put(world, (0, -0.1, 0.2)) == 0


def test_reached_means_the_pinch_within_5_cm(world):
    put(world, (0, 0, HALF))
    x, y, z = world.pinch[0]
    assert put(world, (x, y, z - 0.049)) == 1
    assert put(world, (x, y, z - 0.051)) == 0


def test_rewards_are_constant_inside_a_stage_and_fit_the_ladder():
    stages = np.arange(4)
    assert env.REWARDS["stack"][stages].tolist() == [0, 0.125, 0.25, 1]
    for task, solved in (("reach", 1), ("lift", 2), ("stack", 3)):
        assert (env.REWARDS[task][solved:] == 1).all()
        assert (env.REWARDS[task][:solved] < 1).all()
        world = Stack(1, task=task)
        put(world, ON_TOP)
        assert world.step(np.zeros((1, 9)))[1] == [1]


@pytest.mark.parametrize("horizon", [200, 600])
def test_a_time_limit_is_not_a_termination(horizon):
    world = Stack(1, horizon=horizon)
    for t in range(horizon):
        _, _, discount, last = world.step(np.zeros((1, 9)))
        assert discount == 1
        assert last == (t == horizon - 1)


# -- observations


def test_features_are_what_their_names_say(world):
    world.reset()
    world.step(actions_of(world, 1)[0])
    part = {name: world.features()[:, columns] for name, columns in Stack.FEATURES.items()}
    assert sum(p.shape[1] for p in part.values()) == world.features().shape[1] == 51
    a, b = part["block_a"], part["block_b"]
    np.testing.assert_allclose(part["pinch_to_a"], a[:, :3] - part["pinch"], atol=1e-6)
    np.testing.assert_allclose(part["pinch_to_b"], b[:, :3] - part["pinch"], atol=1e-6)
    np.testing.assert_allclose(part["a_to_b"], b[:, :3] - a[:, :3], atol=1e-6)
    state = world.get_state()
    for block, first in ((a, 13), (b, 20)):  # two columns of the rotation of its quaternion
        for features, quaternion in zip(block, state[:, first : first + 4], strict=True):
            mujoco.mju_quat2Mat(turn := np.empty(9), quaternion)
            columns = turn.reshape(3, 3)[:, :2]
            np.testing.assert_allclose(features[3:].reshape(3, 2), columns, atol=1e-5)
    for name, value in (
        ("joints", state[:, 1:10]), ("joint_velocities", state[:, 24:33]),
        ("pinch", world.pinch), ("pinch_velocity", world.pinch_velocity),
    ):  # fmt: skip
        np.testing.assert_allclose(part[name], value, atol=1e-5)
    np.testing.assert_allclose(a[:, :3], state[:, 10:13], atol=1e-6)
    np.testing.assert_allclose(b[:, :3], state[:, 17:20], atol=1e-6)
    body = [part[k] for k in ("joints", "joint_velocities", "pinch", "pinch_velocity")]
    np.testing.assert_array_equal(world.body(), np.concatenate(body, 1))


def test_the_pinch_velocity_is_its_position_differentiated(world):
    world.reset()
    world.step(actions_of(world, 1)[0])
    velocity, data = world.pinch_velocity.copy(), mujoco.MjData(world.model)
    for i, state in enumerate(world.get_state()):
        places = []
        for h in (-1e-6, 1e-6):
            mujoco.mj_integratePos(world.model, qpos := state[1:24].copy(), state[24:45], h)
            data.qpos = qpos
            mujoco.mj_kinematics(world.model, data)
            places.append(data.site("pinch").xpos.copy())
        np.testing.assert_allclose(velocity[i], (places[1] - places[0]) / 2e-6, atol=1e-5)


def test_pixels_are_an_observation_too():
    world = Stack(2, obs="pixels", size=48)
    obs, *_ = world.step(np.zeros((2, 9)))
    assert (obs.shape, obs.dtype) == ((2, 48, 48, 3), np.uint8)
    np.testing.assert_array_equal(obs, world.render(world.get_state()))
    assert world.body().shape == (2, 24)  # rewards may need it, whatever the policy sees


# -- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n is 0; expected a whole number from 1"),
        ({"n": 2.5}, "n is 2.5"),
        ({"n": True}, "n is True"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"seed": None}, "seed is None"),
        ({"obs": "sound"}, "'features' or 'pixels'"),
        ({"task": "juggle"}, "reach, lift, stack"),
        ({"size": 300}, "size is 300; expected a whole number from 32 to 256"),
        ({"horizon": 0}, "horizon is 0"),
        ({"horizon": 2.5}, "horizon is 2.5"),
    ],
)
def test_a_world_that_cannot_be_says_what_could(options, message):
    with pytest.raises(ValueError, match=message):
        Stack(**options)


def test_whole_numbers_of_any_type_will_do():
    world = Stack(np.int64(2), seed=np.uint8(3), size=np.int32(48), horizon=np.int16(5))
    assert (world.n, world.horizon, world.step(np.zeros((2, 9)))[1].shape) == (2, 5, (2,))


def test_bad_actions_are_refused_and_change_nothing(world):
    world.reset()
    before = world.get_state()
    bad = np.zeros((4, 9))
    for value in (np.nan, np.inf, 1.1):
        bad[2, 3] = value
        with pytest.raises(ValueError, match=r"action 3 of robot 2 is .*; expected a number in"):
            world.step(bad)
    with pytest.raises(ValueError, match=r"shape \(4, 7\), expected \(4, 9\)"):
        world.step(np.zeros((4, 7)))
    np.testing.assert_array_equal(world.get_state(), before)


def test_bad_states_are_refused_and_change_nothing(world):
    before = world.get_state()
    with pytest.raises(ValueError, match=r"shape \(4, 112\), expected \(4, 66\)"):
        world.set_state(np.zeros((4, 112)))  # the kitchen's
    with pytest.raises(ValueError, match="NaN"):
        world.set_state(before * np.nan)
    for column, value, fault in (
        (13, 0, "unit quaternions"),
        (0, -1, "before the start"),
        (30, 1e20, "beyond a million"),
    ):
        bad = before.copy()
        bad[2, column] = value
        with pytest.raises(ValueError, match=fault):
            world.set_state(bad)
    with pytest.raises(ValueError, match=r"shape \(2, 30\), expected \(2, 66\)"):
        world.render(np.zeros((2, 30)))
    with pytest.raises(ValueError, match=r"shape \(2, 66, 1\), expected \(2, 66\)"):
        world.render(np.zeros((2, 66, 1)))
    for ids in ([7], [-1], [1, 1], [2, 1], [0.0], "all", [True, False], [[0]], np.eye(4, 2) > 0):
        with pytest.raises(ValueError, match="ids are"):
            world.reset(ids)
    np.testing.assert_array_equal(world.get_state(), before)


def test_physics_that_diverges_is_reported_not_hidden(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes its log
    world.reset()
    world.physics.qvel[1, 12] = 1e12
    with pytest.raises(FloatingPointError, match="robot 1 diverged"):
        world.step(np.zeros((4, 9)))
