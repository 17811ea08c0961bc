"""MILI: equations 1 to 3 and algorithm 1 word by word; what is kept; bad input."""

import csv
import json
import math
import re
import shutil
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import env
import mili
import networks
import train
from tests.conftest import tiny
from tests.test_train import assert_same, columns

TASKS, FRAMES = 8, 4
SEEDS = {"train": 7, "val": 8}
SHORT = {  # shorter than the preset tiny, which learns to be of some use
    "updates": 20, "trials": 16, "retrain": 20, "channels": 8, "batch": 4, "lr_end": 1.0,
    "alpha": 0.0, "robots": 4, "log_every": 10, "eval_every": 20,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_tasks():
    """Two validation tasks of each family will do."""
    every = env.tasks_of

    def tasks_of(split):
        tasks = every(split)
        family = lambda name: [task for task in tasks if task.family == name]
        few = [task for name in env.FAMILIES for task in family(name)[:2]]
        return few if split == "val" else tasks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(env, "tasks_of", tasks_of)
        yield


@pytest.fixture(scope="module")
def demos(tmp_path_factory, few_tasks):
    """Two demonstrations of each of eight training tasks, and of eight validation tasks."""
    root = tmp_path_factory.mktemp("demos")
    for split, numbers in (("train", mili.chosen_tasks(TASKS)), ("val", range(8))):
        folder = root / "kitchen" / split
        paths = [folder / f"{number:03d}_{k}.npz" for number in numbers for k in range(2)]
        env._demonstrate(("kitchen", split, paths, SEEDS[split], 50))
    return root


@pytest.fixture
def config(demos):
    def make(**changes):
        return tiny(mili, **SHORT | {"demos": str(demos)} | changes)

    return make


@pytest.fixture
def begun(config, tmp_path):
    """A run that has its demonstrations."""

    def make(**changes):
        run = mili.make_run(config(**changes))
        run.folder = tmp_path
        return run.start()

    return make


def as_trials(run, every):
    """Episodes, as chunks of trials that are there already."""
    for k in range(mili.chunks(run.config)):
        n = run.config.robots
        path = run.folder / "trials" / "1" / mili.chunk_name(k)
        mili.save_trials(path, every[k * n : k * n + n], run.who())


def brief_and_useful(agent, world, *args, attempt=mili.rollout, **back):
    """Trials of twelve steps, all of which count as useful: no untrained policy's would."""
    world.horizon, first = 12, np.arange(len(env.SLOTS)) == 0
    trials = attempt(agent, world, *args, **back)
    return [t | {"achieved": first, "done_at": 6} for t in trials]


def easy_collector(*args, collector=mili.Collector):
    """A collector of such trials, in whatever process."""
    mili.rollout = brief_and_useful
    return collector(*args)


def same_trials(these, those):
    assert len(these) == len(those) > 0
    for one, other in zip(these, those):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


# -- data


def test_the_demonstrated_tasks_are_of_all_families_alike():
    every = env.tasks_of("train")
    for count in (8, 200, 520):
        numbers = mili.chosen_tasks(count)
        assert len(set(numbers)) == count
        families = [every[k].family for k in numbers]
        assert {families.count(f) for f in env.FAMILIES} == {count // 4}
    assert set(mili.chosen_tasks(8)) < set(mili.chosen_tasks(200))
    assert {task.scene for task in every} == set(range(mili.SCENES))


def test_images_are_those_of_the_states_whoever_renders_them(begun, config):
    run = begun()
    world = env.Kitchen(1, obs="features", size=run.config.size)
    for k in (0, 9):
        demo, part = run.episodes[k], slice(run.demos.first[k], run.demos.first[k] + 3)
        images = world.render(demo["states"][:3])
        np.testing.assert_array_equal(run.demos.image[part], images)
    apart = mili.Library(config(actors=2), run.episodes, "")
    np.testing.assert_array_equal(apart.image, run.demos.image)


def test_an_episode_is_seen_from_first_to_last_frame(begun):
    library, rng = begun().demos, np.random.default_rng(0)
    episodes = np.arange(len(library)).reshape(-1, 2)
    first, last = library.first[episodes], (library.first + library.length)[episodes] - 1
    for frames, draw in ((3, rng), (5, rng), (60, rng), (5, None)):
        moments = library.moments(episodes, frames, draw)
        assert moments.shape == (*episodes.shape, frames)
        assert (np.diff(moments) >= 0).all()
        np.testing.assert_array_equal(moments[..., 0], first)
        np.testing.assert_array_equal(moments[..., -1], last)
    np.testing.assert_array_equal(moments, library.moments(episodes, 5))
    assert (library.moments(episodes, 9, rng) != library.moments(episodes, 9, rng)).any()


def test_each_frame_is_learned_from_as_often_as_another(begun):
    """The last but one, too, in which things are let go; first and last always, besides."""
    library, rng = begun().demos, np.random.default_rng(0)
    episodes = np.tile(np.arange(len(library)), (4_000, 1))
    between = library.moments(episodes, 8, rng)[..., 1:-1]
    drawn = np.bincount(between.ravel(), minlength=library.length.sum())
    expected = 6 * 4_000 / np.repeat(library.length, library.length)
    assert abs(drawn / expected - 1).max() < 0.15


@pytest.mark.parametrize(("family", "more"), [("push", 0), ("place", mili.LEAVE_STEPS)])
def test_poses_and_actions_are_the_files(begun, demos, family, more):
    """Until the task is done, and of what is placed a little longer."""
    run, numbers = begun(), mili.chosen_tasks(TASKS)
    turn = [env.tasks_of("train")[number].family for number in numbers].index(family)
    number = numbers[turn]
    demo = env.load_demo(demos / f"kitchen/train/{number:03d}_1.npz", "kitchen",
                         ("actions", "obs/body", "rewards"))  # fmt: skip
    T = int(np.flatnonzero(demo["rewards"])[0]) + 1 + more
    first, length = (x[2 * turn + 1] for x in (run.demos.first, run.demos.length))
    part = slice(first, first + length)
    np.testing.assert_allclose(run.demos.pose[part, :7], demo["obs/body"][: T + 1], atol=1e-6)
    np.testing.assert_array_equal(run.demos.action[part][:-1], demo["actions"][:T])
    assert run.demos.done[part].tolist() == [0] * (length - 2) + [1, 1]


# -- equations 1 to 3


def test_the_likelihood_is_that_of_a_mixture_of_gaussians():
    torch.manual_seed(0)
    logits, means, σ = torch.randn(6, 3), torch.randn(6, 3, 7), torch.rand(3, 7) + 0.1
    x = torch.randn(6, 7)
    literal = []
    for b in range(6):
        weights, chance = logits[b].exp() / logits[b].exp().sum(), 0.0
        for k in range(3):
            density = 1.0
            for j in range(7):
                z = float((x[b, j] - means[b, k, j]) / σ[k, j])
                density *= math.exp(-z * z / 2) / (float(σ[k, j]) * math.sqrt(2 * math.pi))
            chance += float(weights[k]) * density
        literal.append(-math.log(chance))
    ours = mili.negative_log_likelihood((logits, means, σ), x)
    np.testing.assert_allclose(ours, literal, rtol=1e-4)


def literal_contrastive(f_m, f_n, beta):
    """The paper's sum over all j and k, a task (departure 1)."""
    total = 0
    for j, one in enumerate(f_m):
        for k, other in enumerate(f_n):
            H = sum((a - b) ** 2 for a, b in zip(one.tolist(), other.tolist()))
            total += H if j == k else max(0.0, beta - H)
    return total / len(f_m)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_the_contrastive_loss_is_the_papers(beta):
    torch.manual_seed(1)
    f_m, f_n = torch.nn.functional.normalize(torch.randn(2, 5, 4), dim=2)
    expected = literal_contrastive(f_m, f_n, beta)
    np.testing.assert_allclose(mili.contrastive(f_m, f_n, beta), expected, rtol=1e-5)


def literal_surprise(heat, place):
    """A place between four cells, each weighed by how near it is."""
    p, (h, w) = np.exp(heat) / np.exp(heat).sum(), heat.shape
    x, y = np.clip((place + 1) / 2 * [w, h] - 0.5, 0, [w - 1, h - 1])
    near = {
        (i, j): max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) for i in range(h) for j in range(w)
    }
    assert sum(near.values()) == pytest.approx(1)
    return -sum(share * math.log(p[cell]) for cell, share in near.items())


def literal_smooth(x, beta):
    """Squares near 0, distances farther off."""
    return np.where(abs(x) < beta, x**2 / (2 * beta), abs(x) - beta / 2).mean()


def test_a_heat_map_is_surprised_by_what_is_where_it_is_cold():
    """By a literal transcription, in the corners and beyond the edge, too."""
    rng = np.random.default_rng(0)
    places = np.float32([[-1, -1], [1, 1], [1.3, -0.2], [0.11, 0.72]])
    heat = rng.normal(size=(1, 4, 5, 7)).astype(np.float32)
    found = networks.heatmap_loss(torch.from_numpy(heat), torch.from_numpy(places)[None])
    expected = [literal_surprise(*pair) for pair in zip(heat[0], places, strict=True)]
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_a_spatial_softmax_tells_where_its_query_is_met_and_what_is_there():
    maps = torch.zeros(1, 3, 4, 5)
    maps[0, :, 3, 0] = torch.tensor([9.0, 0.0, 4.0])  # bottom left
    seen, heat = networks.spatial_softmax(maps, torch.tensor([[9.0, 0.0, 0.0]]))
    np.testing.assert_allclose(seen[0, 0], [-0.8, 0.75, 9, 0, 4], atol=1e-3)
    assert heat[0, 0].argmax() == 3 * 5


def test_a_sharp_query_looks_at_one_of_two_things_and_not_between_them():
    maps = torch.zeros(1, 3, 4, 12)
    maps[0, 0, 1, [1, 10]] = torch.tensor([20.0, 20.5])  # the right one is a little more like it
    places = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(12.0), indexing="ij"), -1)
    queries, places = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]), places.flatten(0, 1)
    seen, heat = networks.spatial_softmax(maps, queries, places, sharp=1)
    np.testing.assert_allclose(seen[0, 0], [1, 10, 20.5, 0, 0], atol=1e-3)
    assert 5 < seen[0, 1, 1] < 8  # a mean
    assert torch.equal(heat[0, 0], heat[0, 1])


def test_a_second_look_can_be_sent_anywhere(config):
    """To a place that looks like nothing, by a hill of warmth; and the first learns from it."""
    torch.manual_seed(0)
    policy = mili.Agent(config(size=48)).nets[2]
    place = torch.tensor([0.3, -0.7])
    hill = 9 * torch.cat([2 * place, torch.tensor([-1.0])]) @ policy.slopes  # -9 |x - place|²
    seen, heat = networks.spatial_softmax(torch.zeros(1, 8, 24, 24), torch.zeros(1, 1, 8),
                                  policy.places, sharp=1, warmth=hill[None, None])  # fmt: skip
    assert (seen[0, 0, 2:4] - place).abs().max() < 2 / 24
    images, maps = torch.zeros(2, 48, 48, 3, dtype=torch.uint8), torch.randn(2, 8, 24, 24)
    f, pose = torch.randn(2, 32), torch.randn(2, 9)
    heat = policy(images, maps, pose, f, torch.zeros(2))[2][0]
    assert heat.shape == (2, networks.AIMS + networks.OBJECTS, 24, 24)
    heat = heat[:, : networks.AIMS]  # of the second look alone
    networks.heatmap_loss(heat, place.expand(2, networks.AIMS, 2)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in policy.query.parameters())
    with torch.no_grad():  # and so the policy sends it, if its second queries say so
        policy.query_2[-1].weight.zero_()
        bias = policy.query_2[-1].bias.view(networks.AIMS, 8 + 3)
        bias[:, 8:] = 9 * torch.cat([2 * place, torch.tensor([-1.0])])
        heat = policy(images, 0 * maps, pose, f, torch.zeros(2))[2][0][:, : networks.AIMS]
    torch.testing.assert_close(heat.flatten(2), hill.expand(2, networks.AIMS, -1))


def test_the_policy_is_told_how_far_what_it_sees_is_from_its_gripper(config):
    """A cell of the map, told as the pose of a gripper above what it shows."""
    camera, world = env.scene_camera(0, 48, False), env.Kitchen(1, obs="features")
    places = camera.on_table(24)
    points = np.concatenate([places, np.zeros((24, 24, 1))], 2)
    cell = (np.arange(24) + 0.5) / 12 - 1
    np.testing.assert_allclose(camera.project(points)[..., 0], np.tile(cell, (24, 1)), atol=1e-5)
    np.testing.assert_allclose(camera.project(points)[..., 1].T, np.tile(cell, (24, 1)), atol=1e-5)
    told = mili.Agent(config(size=48)).nets[2].places.view(24, 24, 4)
    pose = torch.from_numpy(mili.proprioception(world.pose(), world.pose(), world.pose()[:, 6]))
    pose[0, :2] = torch.from_numpy(places[17, 5])
    np.testing.assert_allclose(mili.scaled(pose)[0, :2], told[17, 5, :2], atol=1e-5)
    np.testing.assert_allclose(camera.project(points)[17, 5], told[17, 5, 2:], atol=1e-5)
    seen, policy = [], mili.Agent(config(size=48)).nets[2]
    policy.hidden.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images, maps = torch.zeros(1, 48, 48, 3, dtype=torch.uint8), torch.zeros(1, 8, 24, 24)
    policy(images, maps, pose.float(), torch.randn(1, 32), torch.zeros(1))
    last = seen[0][0, 7 * 12 : 7 * 12 + 2]  # of eight queries; where all is alike, the map's middle
    torch.testing.assert_close(last, policy.places[:, :2].mean(0) - pose[0, :2].float())


def test_what_is_looked_at_closely_is_what_the_image_shows_there():
    """Pixel (20, 9) of an image, and half a pixel beside it; beyond the border, the border."""
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    place = lambda x, y: [(x + 0.5) / 16 - 1, (y + 0.5) / 16 - 1]
    places = torch.tensor([place(20, 9), place(20.5, 9), place(3, 9)])
    seen = (networks.crop(images, places, torch.zeros(3)) + 0.5) * 255  # [3, 3, 9, 9]
    exact = images[:, 9].permute(0, 2, 1).float()  # [3, 3, 32]
    torch.testing.assert_close(seen[0, :, 4], exact[0, :, 16:25], atol=1e-2, rtol=0)
    between = (exact[1, :, 16:25] + exact[1, :, 17:26]) / 2
    torch.testing.assert_close(seen[1, :, 4], between, atol=1e-2, rtol=0)
    torch.testing.assert_close(seen[2, :, 4, 1:], exact[2, :, :8], atol=1e-2, rtol=0)
    torch.testing.assert_close(seen[2, :, 4, 0], seen[2, :, 4, 1], atol=1e-2, rtol=0)


def test_as_much_of_the_table_is_looked_at_closely_whatever_the_images_size():
    assert networks.crop_width(48) == 13  # as in results/
    for size in range(32, 257, 2):
        n = networks.crop_width(size)
        assert n % 2 == 1
        assert abs(n - networks.CROP * size) <= 1


@pytest.mark.parametrize("yaw", [0.0, 0.4, 1.2, 2.5, -0.8])
def test_what_is_looked_at_closely_is_seen_as_from_above_and_turned(yaw):
    """A bar on the table, from its middle along its yaw, points to the right."""
    camera = env.scene_camera(0, 96, False)
    assert abs(camera.axes[1, 1] - networks.SLANT) < 0.01  # of up, along the table
    middle, way = np.array([0.05, 0.03]), np.array([np.cos(yaw), np.sin(yaw)])
    off = camera.on_table(96) - middle
    along, aside = off @ way, off @ [-way[1], way[0]]
    bar = (along > 0) & (along < 0.06) & (abs(aside) < 0.012)
    image = np.uint8(255 * bar)[None, :, :, None].repeat(3, 3)
    place = torch.from_numpy(mili.table_to_image(96, middle))[None]
    seen = networks.crop(torch.from_numpy(image), place, torch.tensor([yaw]))[0, 0] + 0.5
    y, x = np.indices(seen.shape) - networks.crop_width(96) // 2
    seen = seen.numpy()
    told = np.arctan2((seen * -y).sum(), (seen * x).sum())
    assert seen.sum() > 10
    assert abs(told) < 0.12


def test_what_is_told_of_a_turned_picture_is_turned_back():
    vector, angle = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([0.5, -0.7])
    told = networks.rotate(vector, angle)
    then = torch.atan2(told[:, 1], told[:, 0])
    torch.testing.assert_close(then, torch.tensor([0.5, math.atan2(0.8, 0.6) - 0.7]))


def test_the_policy_turns_back_what_its_turned_crop_tells(config, monkeypatch):
    """That the gripper comes down to the right, at yaw 0: in a crop turned by x, at yaw x."""
    policy, x = mili.Agent(config(size=48)).nets[2], 0.4
    told = torch.tensor([[1.0, 0.0, 0.2, 0.0]])  # cos and sin of twice the yaw; how far off
    monkeypatch.setattr(policy.refine, "forward", lambda _: told)
    look = torch.zeros(1, 48, 48, 3, dtype=torch.uint8), torch.randn(1, 8, 24, 24)
    known = torch.randn(1, 9), torch.randn(1, 32)
    (plain, _), (down, turned) = (policy(*look, *known, torch.tensor([a]))[3] for a in (0.0, x))
    torch.testing.assert_close(turned[0], torch.tensor([math.cos(2 * x), math.sin(2 * x)]))
    way = torch.tensor([math.cos(x) - 1, math.sin(x)])
    torch.testing.assert_close((down - plain)[0], 0.2 * way, atol=1e-6, rtol=0)


def test_a_gripper_is_looked_for_where_its_image_shows_it():
    """Where its fingertips are seen, high and low, there is what nothing else in the scene is."""
    world = env.Kitchen(1, 0, size=96, tasks=env.tasks_of("train")[:1])
    state, held = world.get_state(), []
    for xyz in ((0, -0.06, 0.2), (0.1, 0.1, 0.1), (-0.15, 0.05, 0.15)):
        state[0, 1:4], state[0, 7:9] = xyz, 0
        image = world.render(state)[0]
        x, y = (mili.to_image(96, np.array(xyz)) + 1) * 48
        held.append(image[int(y) - 3 : int(y), int(x)].astype(int))  # just above the tips
    for pixels in held:
        assert (abs(pixels - [70, 73, 80]) < 25).all()  # its dark grey


def literal_embedding(embed, look, seen, size, losses):
    """A demonstration's vector, not yet of length one; adds what its keypoints' losses are."""
    images = seen["image"]
    (vector,), (heat, at) = embed.vector(images, look(images)[0], FRAMES)
    for k in range(networks.OBJECTS):  # both, where they are in its first frame
        place = mili.table_to_image(size, seen["keypoints"][0, networks.AIMS + k])
        losses["objects"].append(literal_surprise(at[0, k].numpy(), place))
    for t, place in enumerate(seen["hand"]):
        losses["hand"].append(literal_surprise(heat[t, 0].numpy(), place))
    return vector


def literal_clone(policy, look, seen, t, shown, size, losses):
    """Adds what a demonstration's frame t adds to each loss, the policy shown another."""
    image, pose, action, done, angle = (
        torch.as_tensor(seen[k][t : t + 1]) for k in ("image", "pose", "action", "done", "angle")
    )
    told = policy(image, look(image)[1], mili.scaled(pose), shown[None], angle)
    mixture, end, (heat, aim), (down, turned) = told
    move = action - mili.base(pose, torch.tensor(seen["yaw"][t]), turned)
    move = move / torch.tensor(mili.REACH)
    losses["oil"].append(mili.negative_log_likelihood(mixture, move).item())  # eq. 2
    p = torch.sigmoid(end).item()
    losses["end"].append(-math.log(p if done else 1 - p))
    for k, xy in enumerate(seen["keypoints"][t]):
        place = mili.table_to_image(size, xy)
        way = (xy - seen["pose"][t, :2]) / 0.06
        smooth = literal_smooth(aim[0, k].numpy() - way, 0.3)
        losses["keypoints"].append(literal_surprise(heat[0, k].numpy(), place) + smooth)
        if k == networks.LANDING:
            losses["down"].append(literal_smooth(down[0].numpy() - way, 0.1))
    off = turned[0].numpy() - seen["turned"][t]
    losses["turn"].append((off**2).mean())


@pytest.mark.parametrize(("method", "tasks"), [("mili", 3), ("mili", 2), ("bc", 3)])
def test_one_demonstration_is_cloned_under_the_others_embedding(begun, monkeypatch, method, tasks):
    """Eq. 2 and 3, a demonstration at a time, against one update; eq. 1: under none.

    The last pair may be of trials, which repel nobody: they may show any task.
    """
    run = begun(method=method)
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"  # whatever the processor: `d4pg.tune`
    agent, library, rng = run.agent, run.demos, np.random.default_rng(0)
    pairs = run.draw_demos(3, rng)
    batch = library.take(library.moments(pairs, FRAMES, rng))
    batch["image"] = torch.from_numpy(batch["image"])
    mili.mirror_and_recolour(batch, rng)
    batch["hand"] = mili.to_image(run.config.size, batch["pose"][..., :3])
    mili.add_noise(batch, rng)
    mili.rotate_crops(batch, rng)
    look, embed, policy = agent.nets
    seen = [[{k: x[i, m] for k, x in batch.items()} for i in range(3)] for m in (0, 1)]
    losses, size, f = defaultdict(list), run.config.size, np.zeros((2, 3), object)  # f: [2, pairs]
    with torch.no_grad():
        for m, i in np.ndindex(2, 3):
            f[m, i] = literal_embedding(embed, look, seen[m][i], size, losses)
        mean = sum(f.ravel()) / 6
        for m, i in np.ndindex(2, 3):
            f[m, i] = f[m, i] - mean
            f[m, i] = f[m, i] / f[m, i].square().sum().sqrt()
        for m, i, t in np.ndindex(2, 3, FRAMES):  # clone d_m, given d_n
            shown = f[1 - m, i] * (method != "bc")
            literal_clone(policy, look, seen[m][i], t, shown, size, losses)
    losses["contrastive"] = [literal_contrastive(list(f[0, :tasks]), list(f[1, :tasks]), 1.0)]
    descended, slope = [], torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda x: descended.append(x.item()) or slope(x))
    metrics = agent.update(batch, tasks)
    weight = {"down": 5, "turn": 5}  # departure 8
    total = sum(weight.get(name, 1) * value for name, value in metrics.items())
    assert descended == [pytest.approx(total, rel=1e-5)]
    np.testing.assert_allclose(
        [metrics[name] for name in mili.LOSSES],
        [np.mean(losses[name]) for name in mili.LOSSES],
        rtol=1e-3,
    )
    monkeypatch.setattr(mili, "contrastive", lambda f_m, *_: 0 * f_m.sum())
    agent.update(batch, tasks)  # f learns from what is cloned under it, too
    assert (embed.rest[-1].weight.grad.abs().sum() > 0) == (method != "bc")


@pytest.mark.parametrize(
    ("yaw", "then", "told"),
    [(0, 0.3, 0.3), (0, 1.2, 0.4), (0.2, 0.2, 0.2), (1.5, -1.5, -1.5), (0.5, -1.2, 0.9), (3, 0, 0)],
)
def test_a_gripper_turns_the_shorter_way_a_step_at_a_time(yaw, then, told):
    """Jaws are alike: half a turn is none."""
    pose, turned = torch.rand(1, 9), torch.tensor([[math.cos(2 * then), math.sin(2 * then)]])
    x, y, z, *bearing, is_told, finger = mili.base(pose, torch.tensor([yaw]), turned)[0].tolist()
    assert [x, y, z] == pose[0, :3].tolist()
    assert bearing == [0, 0]
    assert finger == 0
    assert abs(math.sin(is_told - told)) < 1e-5


def test_each_phase_begins_with_a_new_adam_whose_steps_shrink(begun):
    run, rates, taken = begun(updates=3, lr_end=0.1), [], []
    for _ in range(4):
        run.round()
        adam = run.agent.adam
        rates.append(adam.param_groups[0]["lr"])
        taken.append(max(int(state["step"]) for state in adam.state.values()))
        if run.steps == 3:  # on to what follows trials and pairs
            run.steps += run.config.trials + 1
            run.trials, run.partners = run.demos, np.arange(16)[:, None] ^ 1
    np.testing.assert_allclose(rates, [1e-3, 7e-4, 4e-4, 1e-3])
    assert taken == [1, 2, 3, 1]


def test_pairs_are_two_demonstrations_of_a_task_each_task_once(begun):
    run = begun()
    for k in range(5):
        pairs = run.draw_demos(6, np.random.default_rng(k))
        tasks = run.demos.tasks[pairs].argmax(2)
        assert (tasks[:, 0] == tasks[:, 1]).all()
        assert len(set(tasks[:, 0])) == 6
        assert (pairs[:, 0] != pairs[:, 1]).all()
    run.demos.tasks = np.repeat(np.eye(9), 4, 0)  # any two of four, of any task
    drawn = np.stack([run.draw_demos(6, np.random.default_rng(k)) for k in range(200)])
    assert len({frozenset(pair) for pair in drawn.reshape(-1, 2).tolist()}) == 9 * 6


def test_each_update_draws_anew(begun, monkeypatch):
    run, drawn = begun(), []
    draw = run.draw_demos
    watched = lambda n, rng: drawn.append(rng.random()) or draw(n, rng)
    monkeypatch.setattr(run, "draw_demos", watched)
    for _ in range(5):
        run.learn(0, 0.0)
    assert len(set(drawn)) == 5


def test_rounds_without_trials_are_updates_alone(begun):
    """--share 0, to tell what updates alone are worth: nothing is tried, nothing paired."""
    run = begun(share=0, rounds=2, updates=2, retrain=1)
    phases = []
    while not run.finished():
        phases.append(run.phase()[:2])
        run.round()
    assert phases == 2 * [("bootstrap", 0)] + [("improvement", 1), ("improvement", 2)]
    assert run.updates == run.config.steps == 4
    assert not (run.folder / "trials").exists()


@pytest.mark.parametrize(("iteration", "share", "trials"), [(0, 0.5, 0), (1, 0.5, 2), (1, 0, 0)])
def test_after_trials_a_part_of_a_batch_is_pairs_of_trials(begun, iteration, share, trials):
    """They come last, each with a partner of its own; --share says how many."""
    run, seen = begun(share=share), []
    run.trials = mili.Library(run.config, run.episodes, "")
    for library in (run.demos, run.trials):  # of whatever moment: which episode it is of
        number = np.repeat(np.arange(len(library)), library.length)
        library.done = np.float32(number + 100 * (library is run.trials))
    run.partners = np.full((len(run.trials), mili.PARTNERS), -1)
    run.partners[[3, 5], 0] = 5, 3
    losses = dict.fromkeys(mili.LOSSES, 0.0)
    run.agent.update = lambda batch, n: seen.append((batch["done"], n)) or losses
    run.learn(iteration, 0)
    ((done, n),) = seen
    which = done[:, :, 0]  # [N, 2]
    assert (which == done.min(2)).all()
    assert n == run.config.batch - trials
    assert (which[:n] < 100).all()
    assert all(sorted(pair) == [103, 105] for pair in which[n:])
    shown = run.demos.tasks.argmax(1)[which[:n].astype(int)]
    assert (shown[:, 0] == shown[:, 1]).all()


def test_embeddings_have_length_1_and_know_images_alone(begun):
    run = begun()
    f = run.agent.embed(run.demos)
    np.testing.assert_allclose((f**2).sum(1), 1, rtol=1e-5)
    again = run.agent.embed(run.demos, chunk=5)
    np.testing.assert_allclose(again, f, atol=0.01)  # bfloat16: two episodes' differ by 0.07
    run.demos.pose[:], run.demos.action[:] = np.nan, np.nan
    np.testing.assert_array_equal(run.agent.embed(run.demos), f)
    run.demos.image[: run.demos.length[0]] = 0
    assert (run.agent.embed(run.demos)[0] != f[0]).any()


def test_f_looks_at_both_objects_in_the_first_frame_where_nothing_hides_them(begun, monkeypatch):
    run, crops, real = begun(), [], networks.crop
    library = run.demos
    images = torch.from_numpy(library.image[library.moments(np.array([0, 5]), FRAMES)])

    def watched(images, places, angle):
        crops.append((images, places))
        return real(images, places, angle)

    monkeypatch.setattr(networks, "crop", watched)
    look, embed, _ = run.agent.nets.eval()

    def find():
        frames = images.flatten(0, 1)
        with torch.no_grad():
            return embed.vector(frames, look(frames)[0], FRAMES)[1][1]

    objects, (seen, places) = find(), crops[1]
    for k, (episode, which) in enumerate(np.ndindex(2, networks.OBJECTS)):
        assert (seen[k] == images[episode, 0]).all()
        heat = objects[episode, which].numpy()
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        hottest = (np.array([x, y]) + 0.5) / len(heat) * 2 - 1
        assert (abs(places[k].numpy() - hottest) < 2.01 * 2 / len(heat)).all()
    images[:, 1:-1] = 0  # found by comparing the first frame with the last
    np.testing.assert_allclose(find(), objects, rtol=1e-4, atol=1e-4)
    images[:, -1] = 0
    assert abs(find() - objects).max() > 0.01


def test_behaviour_cloning_looks_at_no_demonstration(begun, config):
    for method, alike in (("bc", True), ("meta", False)):
        agent = mili.Agent(config(method=method))
        task, f = env.tasks_of("val")[0], np.eye(2, 32, dtype=np.float32)
        episodes = []
        for one in f:
            world = env.Kitchen(1, 3, obs="features", size=32, tasks=[task])
            episodes.append(mili.rollout(agent, world, one[None], np.random.default_rng(0))[0])
        first, second = (e["actions"][0] for e in episodes)
        assert np.array_equal(first, second) == alike


def test_a_mirrored_demonstration_is_one_of_the_mirrored_world(begun):
    """Mirrored images, poses and actions belong together."""
    run = begun()
    library, pairs = run.demos, run.draw_demos(8, np.random.default_rng(0))
    before, seen = library.take(library.moments(pairs, FRAMES)), set()
    for seed in range(20):
        after = {name: value.copy() for name, value in before.items()}
        after["image"] = torch.from_numpy(after["image"])
        rng = np.random.default_rng(seed)
        mili.mirror_and_recolour(after, rng)
        mili.add_noise(after, rng)
        mirrored = (after["action"] != before["action"]).any()
        x = -1 if mirrored else 1
        off = after["pose"] - before["pose"] * [x, 1, 1, 1, x, x, 1, 1, 1]
        np.testing.assert_allclose(off.reshape(-1, 9).std(0), mili.POSE_NOISE, rtol=0.5, atol=1e-6)
        np.testing.assert_array_equal(after["action"][..., 0], x * before["action"][..., 0])
        np.testing.assert_array_equal(after["keypoints"][..., 0], x * before["keypoints"][..., 0])
        np.testing.assert_array_equal(after["turned"], before["turned"] * [1, x])
        np.testing.assert_array_equal(after["yaw"], before["pose"][..., 5] * x)  # moves are exact
        np.testing.assert_array_equal(after["action"][..., 2], before["action"][..., 2])
        now = after["image"].numpy()[..., ::x, :].astype(int)
        turned = (now != before["image"]).any()
        seen.add((bool(mirrored), bool(turned)))
        dull = before["image"].max(-1) - before["image"].min(-1) < 3  # grey stays grey
        assert dull.any()
        assert abs(now - before["image"])[dull].max() < 5
    assert len(seen) == 4  # both, either, neither


def test_with_augment_no_images_are_learned_from_as_they_are(begun, monkeypatch):
    run, seen, none = begun(augment="no"), [], dict.fromkeys(mili.LOSSES, 0.0)
    monkeypatch.setattr(run.agent, "update", lambda batch, n: seen.append(batch) or none)
    taken = run.demos.take
    monkeypatch.setattr(run.demos, "take", lambda at: seen.append(taken(at)) or seen[-1])
    run.learn(0, 0.0)
    was, now = seen
    for name in ("image", "action", "keypoints", "turned"):
        np.testing.assert_array_equal(was[name], now[name])
    off = (now["pose"] - was["pose"]).reshape(-1, 9)
    np.testing.assert_allclose(off.std(0), mili.POSE_NOISE, rtol=0.5, atol=1e-6)
    run.config.augment, called = "yes", []
    for name in ("mix_scenery", "mirror_and_recolour"):
        monkeypatch.setattr(mili, name, lambda *_, name=name: called.append(name))
    run.learn(0, 0.0)
    assert called == ["mix_scenery", "mirror_and_recolour"]


def test_only_what_stands_still_is_replaced_and_by_what_stands_still_elsewhere():
    """A spot moves, elsewhere in each of two scenes of flat colours."""
    image = np.full((2, 2, 3, 32, 32, 3), 10, np.uint8)
    image[1] = 200
    moving = np.zeros((2, 3, 32, 32), bool)
    for k, t in np.ndindex(2, 3):
        moving[k, t, 4 + 9 * k : 7 + 9 * k, 5 * t : 5 * t + 4] = True
        image[k, :, t, moving[k, t]] = 77
    moved, cells = moving.any(1), env.scene_camera(0, 32, False).on_table(32)
    ahead = np.tile(cells[28, 3], (2, 2, 3, 5, 1))
    ahead[:, :, -1, networks.LANDING] = cells[24, 24]
    table, replaced = np.full((32, 32, 3), 50, np.uint8), np.zeros((2, 2, 32, 32))
    for seed in range(100):
        batch = {"image": torch.from_numpy(image), "keypoints": ahead}
        mili.mix_scenery(batch, table, np.random.default_rng(seed))
        batch["image"] = batch["image"].numpy()
        new = (batch["image"] != image).any(-1)  # [2, 2, F, H, W]
        assert (new == new[:, :, :1]).all()  # the same in all frames
        assert not (new & moved[:, None, None]).any()  # what moves stays
        assert not new[..., 21:28, 21:28].any()  # what lies where the gripper comes down, too
        assert set(np.unique(batch["image"][0][new[0]])) <= {50, 200}  # another pair's, or table
        assert set(np.unique(batch["image"][1][new[1]])) <= {50, 10}
        replaced += new[:, :, 0]
    often = replaced[np.broadcast_to(~moved[:, None], replaced.shape)] / 100
    assert 0.2 < often.mean() < 0.7


def test_two_that_belong_together_do_not_get_the_same_scenery():
    """Or f could tell by it who they are.  Four pairs of flat colours, in which nothing moves."""
    image = np.zeros((4, 2, 3, 32, 32, 3), np.uint8)
    image += np.arange(10, 90, 10, dtype=np.uint8).reshape(4, 2, 1, 1, 1, 1)
    ahead, seen = np.full((4, 2, 3, 5, 2), 9.0), set()
    for seed in range(100):
        batch = {"image": torch.from_numpy(image), "keypoints": ahead}
        mili.mix_scenery(batch, image[0, 0, 0], np.random.default_rng(seed))
        donor = lambda one, k: {int(x) // 10 - 1 for x in np.unique(one)} - {k}
        for k, two in enumerate(batch["image"]):
            theirs = [{x // 2 for x in donor(one, 2 * k + i)} for i, one in enumerate(two)]
            assert k not in theirs[0] | theirs[1]
            assert not theirs[0] & theirs[1]
            seen |= {(k, x) for x in theirs[0]}
    assert len(seen) == 4 * 3  # any other pair's


def test_the_mirror_is_where_the_image_has_it():
    """A gripper alone before the table, turned and tilted: mirrored, its outline is mirrored."""
    world = env.Kitchen(1, obs="features", size=128)
    state, table = world.get_state(), mili.empty_table(128).astype(int)
    state[0, 9:30] = np.tile([0, 0, -9, 1, 0, 0, 0], 3)  # its things are away
    state[0, world.physics.motion : -env.MEMORY].reshape(2, 3)[:, 2] = -9

    def outline(pose):
        state[0, 1:8], state[0, 8] = pose * env.Kitchen.JAW, pose[6] * env.Kitchen.JAW[6]
        return abs(world.render(state)[0] - table).max(2) > 20  # the lamp: 11

    mirror = mili.MIRROR["action"]
    for pose in ([0.1, -0.05, 0.12, 0.5, -0.4, 0.5, 0.5], [-0.1, 0.1, 0.1, -0.4, 0.4, 0.5, 0.5]):
        mirrored = outline(pose)[:, ::-1]
        assert mirrored.sum() > 500
        off = (outline(pose * mirror) ^ mirrored).sum()
        for k in (0, 3, 4, 5):  # x, roll, pitch and yaw: any other sign is wrong
            wrong = mirror * np.where(np.arange(7) == k, -1, 1)
            assert (outline(pose * wrong) ^ mirrored).sum() > 5 * off


def test_a_third_of_a_turn_exchanges_colours():
    turn = mili.hue_rotation(2 * np.pi / 3)
    np.testing.assert_allclose(sorted(turn.ravel()), [0] * 6 + [1] * 3, atol=1e-6)
    there, back = mili.hue_rotation(0.3), mili.hue_rotation(-0.3)
    np.testing.assert_allclose(there @ back, np.eye(3), atol=1e-6)


def test_a_gripper_lands_where_it_comes_down_before_it_rises():
    """In cm: hovering is no landing, sliding along is one, rising first is none."""
    land = lambda *z: mili.landings(np.array(z) / 100)
    assert land(20, 18, 12, 13, 12, 7, 2) == [6]  # down to a button
    assert land(20, 13, 6.5, 6, 6, 10, 15) == [2]  # and up with an object
    assert land(15, 10, 2, 1.5, 1.5, 1.5) == [2]  # along the table
    assert land(16, 20, 22, 8, 8, 19, 21, 10, 10.5) == [3, 7]  # from here to there
    assert land(20, 19, 18) == land(18, 25, 30) == land(5) == []


def test_what_is_touched_is_where_a_gripper_lands_or_before_it_where_it_slides():
    """In cm: a press, a place, and two pushes to the right of 20 cm; first and last frame of each.

    What was pushed lay 10 cm ahead; another thing that moved, far from there, is another matter.
    What it met is what stands there, be it a little askew, or else straight on.
    """
    press = [[0, 9, 20], [3, 3, 9], [4, 2, 3], [4, 2, 3]]
    cells = 100 * env.scene_camera(0, 64, False).on_table(64)
    thing = lambda x, y, half: (np.abs(cells - [x, y]) < half).all(2)
    moved, nothing = thing(-2, 3, 3) | thing(9, -8, 2), np.zeros((64, 64), bool)
    place = [[0, 0, 20], [5, 5, 2], [5, 5, 12], [9, -5, 13], [9, -5, 4], [9, -5, 14]]
    push = [[0, 0, 20], [-12, 3, 2], [-4, 3, 2], [4, 3, 1], [8, 3, 2]]
    askew = thing(22, 8, 2) | thing(22, -12, 2)
    for path, still, touched, met in (
        (press, askew, [[4, 2]] * 2, [4, 2]),
        (place, askew, [[5, 5], [9, -5]], [9, -5]),
        (push, nothing, [[-2, 3], [18, 3]], [24, 3]),
        (push, askew, [[-2, 3], [18, 3]], [22, 8]),
    ):
        found = 100 * mili.touched_and_goal(np.array(path) / 100, moved, still)
        assert found.shape == (len(path), 2, 2)
        np.testing.assert_allclose(found[[0, -1], 0], touched, atol=0.5)
        np.testing.assert_allclose(found[:, 1], [met] * len(path), atol=0.5)


def test_what_is_touched_is_what_the_task_is_about(begun):
    """Nobody tells: a push's path shows only roughly how far ahead things are."""
    run, numbers = begun(), mili.chosen_tasks(TASKS)
    for k, first in enumerate(run.demos.first):
        task = env.tasks_of("train")[numbers[k // 2]]
        world = env.Kitchen(1, obs="features", tasks=[task])
        world.set_state(run.episodes[k]["states"][:1])
        family, *which = env.SLOTS[task.slot]
        lie = (world.buttons if family == "press" else world.place)[0, :, :2]
        off = run.demos.keypoints[first, networks.AIMS :] - lie[[which[0], which[-1]]]
        far = (0.04, 0.06) if family == "push" else (0.03, 0.03)
        assert (np.linalg.norm(off, axis=1) < far).all()


def test_where_the_gripper_will_be_is_read_off_the_demonstration(begun):
    library = begun().demos
    for first, length in zip(library.first, library.length, strict=True):
        z = library.pose[first : first + length, 2]
        for t in range(length):
            later = [k for k in mili.landings(z) if k > t]
            then = [min(t + 5, length - 1), min([*later, length - 1]), length - 1]
            xy = library.pose[[first + k for k in then], :2]
            np.testing.assert_array_equal(library.keypoints[first + t, : networks.AIMS], xy)
            yaw = library.pose[first + then[1], 5]
            twice = [np.cos(yaw) ** 2 - np.sin(yaw) ** 2, 2 * np.cos(yaw) * np.sin(yaw)]
            np.testing.assert_allclose(library.turned[first + t], twice, atol=1e-6)


# -- trials


def test_actions_are_likely_components_from_where_the_gripper_is(begun):
    """Weights of 0.3, 0.6 and 0.1 are drawn as 9, 36 and 1 of 46."""
    B, rng = 2000, np.random.default_rng(0)
    means, end = np.zeros((B, 3, 7), np.float32), mili.DONE_LOGIT + np.resize([-2, 2], B)
    means[:, 0, 1], means[:, 1, 0], means[:, 2, 2] = 9, 0.5, 9
    told = [torch.tensor([0.3, 0.6, 0.1]).log().expand(B, 3), torch.from_numpy(means), None]
    pose = rng.random((B, 9), np.float32)
    turned = torch.from_numpy(mili.twice(pose[:, 5]))
    asked = []
    fake = lambda *known: asked.extend(known) or (told, torch.from_numpy(end), None, (None, turned))
    agent = SimpleNamespace(nets=[lambda x: (x, x), None, fake], config=begun().config)
    images, f = np.zeros((B, 8, 8, 3), np.uint8), rng.random((B, 32), np.float32)
    action, done = mili.act(agent, images, pose, f, rng)
    known = (images, images, mili.scaled(torch.from_numpy(pose)), f, np.zeros(B))
    for mine, theirs in zip(asked, known, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert done.tolist() == (end > mili.DONE_LOGIT).tolist()
    pose[:, [3, 4, 6]] = 0  # told as they are
    moved = action - pose[:, :7]
    first, third = moved[:, 1] > 0.1, moved[:, 2] > 0.1
    assert abs(first.mean() - 9 / 46) < 0.03
    assert abs(third.mean() - 1 / 46) < 0.01
    rest = moved[~first & ~third]
    np.testing.assert_allclose(rest, [[0.03, *[0] * 6]] * len(rest), atol=1e-6)  # half of 6 cm


def test_who_does_what_the_operator_does_achieves_the_task(begun, monkeypatch):
    """A trial ends five steps after its robot says so, and is judged there."""
    tasks = [task for task in env.tasks_of("val") if task.family in ("press", "grasp")][:4]
    world = env.Kitchen(4, 5, obs="features", size=32, tasks=tasks)
    operator, felt = env.Operator(world, 5), [[] for _ in tasks]

    def act(agent, images, pose, f, rng):
        actions = operator.act()
        ids = f[:, 0].astype(int)
        np.testing.assert_array_equal(images, world.pixels(ids))
        for i, mine in zip(ids, pose):
            felt[i].append(mine)
        return actions[ids].astype(np.float32), operator.ended[ids]

    monkeypatch.setattr(mili, "act", act)
    agent = begun().agent
    trials = mili.rollout(agent, world, np.arange(4.0)[:, None] * np.ones(32), None)
    done = [trial["achieved"][task.slot] for trial, task in zip(trials, tasks)]
    assert sum(done) >= 3
    for trial, mine in zip(trials, felt):
        assert len(trial["states"]) == len(trial["actions"]) + 1 < 50
        told = mili.with_pose(trial)["pose"][:-1]  # what it is trained with
        np.testing.assert_allclose(mine, told, atol=1e-6)
    for trial in (trial for trial in trials if trial["achieved"].any()):
        kept = mili.cut_when_done(trial)  # until it was so
        T = len(kept["actions"])
        assert len(kept["states"]) == T + 1 < len(trial["actions"])
        tasks = [env.Task(trial["scene"], 0)] * len(trial["states"])
        world = env.Kitchen(len(tasks), obs="features", tasks=tasks)
        world.set_state(trial["states"])
        there = (world.achieved() >= trial["achieved"]).all(1)
        assert there[T]
        assert not there[:T].any()


def test_who_goes_home_rises_opens_its_jaws_and_then_goes_on(begun, monkeypatch):
    """From low beside its things: home after eight steps, while others act at once."""
    tasks = env.tasks_of("train")[:1] * 2
    world = env.Kitchen(2, 3, obs="features", size=32, tasks=tasks)
    low = np.tile(world.pose(), 1)
    low[:, :3], low[:, 6] = [0.2, 0.1, 0.1], 0.1
    for _ in range(10):
        world.step(low)
    begin, stay = world.pose(), np.float32([0.2, 0.1, 0.1, 0, 0, 0, 0.1])
    monkeypatch.setattr(mili, "act", lambda agent, images, *_: (  # says at once that all is done
        np.tile(stay, (len(images), 1)), np.ones(len(images), bool)))  # fmt: skip
    f = np.zeros((2, 32), np.float32)
    trials = mili.rollout(begun().agent, world, f, None, back=np.array([True, False]))
    home, other = (mili.poses(trial["states"]) for trial in trials)
    assert len(trials[0]["actions"]) == mili.HOME_STEPS + len(trials[1]["actions"])
    np.testing.assert_allclose(home[1, :2], begin[0, :2], atol=0.01)  # straight up at first
    assert home[1, 2] > begin[0, 2] + 0.03
    np.testing.assert_allclose(home[mili.HOME_STEPS], mili.HOME, atol=0.02)
    assert len(trials[1]["actions"]) == mili.STEPS_AFTER_DONE
    assert abs(other[:, :3] - stay[:3]).max() < 0.02
    assert abs(home[-1, :3] - mili.HOME[:3]).max() > 0.1  # it acts again


def test_what_was_done_before_going_home_is_not_what_a_try_achieves(begun, monkeypatch):
    """Two robots have pressed one button and go home; then one of them presses the other."""
    scene = next(task.scene for task in env.tasks_of("train") if task.family == "press")
    world = env.Kitchen(3, 3, obs="features", size=32, tasks=[env.Task(scene, 0)] * 3)
    assert world.allowed[:, :2].all()
    aside = np.tile(np.float32([0.2, 0.1, 0.1, 0, 0, 0, 0.1]), (3, 1))
    for _ in range(10):
        world.step(aside)
    world.depth[:, 0] = 0.012
    goal = world.buttons[0, 1]

    def act(agent, images, pose, f, rng):
        """The first goes over the second button, and down; the others stay."""
        action = pose[:, :7].copy()
        over = np.hypot(*(goal - pose[0, :3])[:2]) < 0.003
        action[0] = [*goal[:2], 0.012 if over else 0.1, 0, 0, 0, 0]
        return action, np.arange(len(f)) > 0

    monkeypatch.setattr(mili, "act", act)
    f, back = np.zeros((3, 32), np.float32), np.array([True, True, False])
    trials = mili.rollout(begun().agent, world, f, None, back=back)
    done = [np.flatnonzero(trial["achieved"]).tolist() for trial in trials]
    assert done == [[1], [], [0]]  # who did not go home goes on with its episode
    assert trials[0]["done_at"] > mili.HOME_STEPS
    was, way = mili.poses(trials[0]["states"]), slice(mili.HOME_STEPS)
    moves, asked = np.diff(was, axis=0)[way], trials[0]["actions"][way] - was[way]
    assert abs(moves).max() > 0.02
    assert (abs(asked) <= mili.REACH * 1.001).all()  # as the operator's: a step at a time


def test_who_was_of_no_use_tries_again_where_it_stands(begun, monkeypatch, tmp_path):
    """Robots 1 and 3 succeed at once, 0 at its second try, 2 never; others begin anew."""
    run, seen = begun(tries=3, updates=2, trials=12, elsewhere=0.5), []
    run.folder, begin = tmp_path, []
    useful = iter([[1, 3], [0, 1, 3], [0, 1, 3]])

    def rollout(agent, world, f, rng, back):
        seen.append((back.tolist(), f.copy(), [task.scene for task in world.tasks]))
        begin.append(world.get_state())
        world.step(world.pose())
        done = np.isin(np.arange(4), next(useful))
        trial = {"states": begin[-1][:, None].repeat(2, 1), "actions": np.zeros((4, 1, 7))}
        return [{name: rows[i] for name, rows in trial.items()} | {
            "scene": world.tasks[i].scene, "done_at": 1,
            "achieved": done[i] & (np.arange(len(env.SLOTS)) == 0)} for i in range(4)]  # fmt: skip

    monkeypatch.setattr(mili, "rollout", rollout)
    while run.phase()[0] != "pairs":
        run.round()
    backs, fs, scenes = zip(*seen)
    assert backs == ([False] * 4, [True, False, True, False], [False, False, True, False])
    time = lambda states: states[:, 0]  # a robot that begins anew begins at 0
    assert [(time(states) > 0).tolist() for states in begin] == list(backs)
    assert [rows[2] for rows in scenes] == [scenes[0][2]] * 3
    assert scenes[1][0] == scenes[0][0]
    two = run.agent.embed(run.demos).reshape(-1, run.config.per_task, 32)  # of each task
    task = [[np.isclose(two, f).all(2).any(1).argmax() for f in rows] for rows in fs]
    assert [rows[2] for rows in task] == [task[0][2]] * 3
    assert task[1][0] == task[0][0]
    which = {int(np.isclose(two, one).all(2).any(0).argmax()) for rows in fs for one in rows}
    assert which == {0, 1}  # of each task any demonstration
    assert run.facts["useful"] == 8 / 12
    assert len(mili.load_trials(tmp_path / "trials/1" / mili.chunk_name(0))) == 8
    aids = 1, None, 0  # who goes on with these counts them, too
    crew = mili.begin_crew(run.config, mili.Collector, tmp_path / "trials/1", aids, run.meta)
    assert crew.board.episodes.tolist() == [[12, 8]]


@pytest.mark.parametrize("elsewhere", [0.0, 1.0])
def test_a_task_is_tried_in_its_scene_or_elsewhere(begun, monkeypatch, tmp_path, elsewhere):
    """As line 12 of algorithm 1 has it, or in a random one of 150 scenes: departure 15."""
    run, its_own = begun(updates=2, trials=48, robots=16, elsewhere=elsewhere), []
    run.folder = tmp_path

    def rollout(agent, world, f, rng, back):
        shown = [np.isclose(every, one).all(1).argmax() for one in f]
        its_own.extend(run.episodes[d]["scene"] == t.scene for d, t in zip(shown, world.tasks))
        return [{"achieved": np.zeros(len(env.SLOTS), bool)}] * world.n

    monkeypatch.setattr(mili, "rollout", rollout)
    while run.phase()[0] != "trials":
        run.round()
    every = run.agent.embed(run.demos)
    while run.phase()[0] != "pairs":
        run.round()
    assert len(its_own) == 48
    assert np.mean(its_own) == 1 if elsewhere == 0 else np.mean(its_own) < 0.1


def test_all_robots_may_have_been_of_no_use(begun, monkeypatch, tmp_path):
    """Nobody begins anew then; a chunk without a trial is a file, too."""
    run, backs = begun(tries=2, updates=2, trials=8), []
    run.folder = tmp_path

    def rollout(agent, world, f, rng, back):
        backs.append(back.tolist())
        return [{"achieved": np.zeros(len(env.SLOTS), bool)}] * world.n

    monkeypatch.setattr(mili, "rollout", rollout)
    while run.phase()[0] != "pairs":
        run.round()
    assert backs == [[False] * 4, [True] * 4]
    assert mili.load_trials(tmp_path / "trials/1" / mili.chunk_name(0)) == []


def test_an_episode_ends_when_all_is_done_and_what_is_placed_has_been_left():
    """Where something else was placed, too, and never behind its last step."""
    states, actions = np.arange(21), np.arange(20)
    press, place = ([slot[0] for slot in env.SLOTS].index(family) for family in ("press", "place"))
    for achieved, since, T in (([press], 8, 8), ([place], 8, 12), ([press, place], 8, 12),
                               ([place], 18, 20), ([press], 20, 20)):  # fmt: skip
        episode = {"states": states, "actions": actions, "done_at": since, "scene": 3}
        episode["achieved"] = np.isin(np.arange(len(env.SLOTS)), achieved)
        kept = mili.cut_when_done(episode)
        assert kept["actions"].tolist() == list(range(T))
        assert kept["states"].tolist() == list(range(T + 1))
        assert kept["scene"] == 3


def test_a_chunk_of_trials_is_the_same_whoever_makes_it(begun, tmp_path, monkeypatch):
    """With two processes, alone, or after one was lost: the same files."""
    monkeypatch.setattr(mili, "rollout", brief_and_useful)  # and put it back in the end
    monkeypatch.setattr(mili, "Collector", easy_collector)
    made = []
    for actors in (0, 2):
        run = begun(actors=actors, updates=2)
        run.folder = tmp_path / str(actors)
        while run.phase()[0] != "pairs":
            run.round()
        made.append(sorted((run.folder / "trials/1").iterdir()))
    assert [p.name for p in made[0]] == [p.name for p in made[1]]
    every = [mili.load_trials(path) for path in made[0]]
    assert [[len(trial["actions"]) for trial in trials] for trials in every] == [[6] * 4] * 4  # cut
    for one, other in zip(*made):
        same_trials(mili.load_trials(one), mili.load_trials(other))
    before, times = mili.load_trials(made[0][2]), [p.stat().st_mtime_ns for p in made[0]]
    made[0][2].write_bytes(made[0][2].read_bytes()[:100])  # damaged
    run = begun(updates=2)
    run.folder = tmp_path / "0"
    while run.phase()[0] != "pairs":
        run.round()
    same_trials(mili.load_trials(made[0][2]), before)
    assert [p.stat().st_mtime_ns == t for p, t in zip(made[0], times)] == [True, True, False, True]


def test_trials_of_another_policy_do_not_count_and_are_not_lost(begun):
    """A run that lost its checkpoints begins anew; what it tried before was another policy's."""
    run = begun(updates=2)
    as_trials(run, run.episodes)
    while run.phase()[0] != "pairs":
        run.round()
    paths = sorted((run.folder / "trials/1").glob("*.damaged"))
    assert len(paths) == 4
    for k, path in enumerate(paths):
        for trial, episode in zip(mili.load_trials(path), run.episodes[4 * k : 4 * k + 4]):
            np.testing.assert_array_equal(trial["states"], episode["states"])
        assert mili.load_trials(path.with_suffix(".npz"), run.who()) is not None


@pytest.mark.parametrize("iteration", [1, 2])
def test_who_tries_is_the_policy_as_it_is_by_then(begun, iteration):
    run = begun(rounds=2)
    run.meta = run.agent.weights()
    run.agent.load_weights(run.meta + 0.5)
    run.steps = run.config.updates + (iteration - 1) * (run.config.trials + 1 + run.config.retrain)
    run.round()
    np.testing.assert_array_equal(run.crew.here.agent.weights(), run.meta + 0.5)


def test_each_robot_is_shown_its_own_task_and_judged_by_it(begun, monkeypatch):
    """The first of a family's two tasks is done each time, its second as often as it says."""
    run, tasks, seen = begun(), env.tasks_of("val"), []
    f, _ = run.look_at("val")

    def rollout(agent, world, shown, rng, stop):
        seen.append(shown)
        assert world.tasks == tasks
        slots = np.arange(len(env.SLOTS))
        done = [k % 2 == 0 or len(seen) <= k // 2 for k in range(len(tasks))]
        return [{"achieved": (slots == task.slot) == d} for d, task in zip(done, tasks)]

    monkeypatch.setattr(mili, "rollout", rollout)
    found = run.success(4, None)
    parts = [0.5, 0.625, 0.75, 0.875]  # the second of press is never done, that of grasp once
    assert found == {"success": np.mean(parts)} | dict(zip(env.FAMILIES, parts))
    each = f.reshape(len(tasks), 2, -1)  # two demonstrations of each, in turn
    for k, shown in enumerate(seen):
        np.testing.assert_array_equal(shown, each[:, k % 2])


def test_the_first_policy_is_judged_beside_the_present_one(begun, monkeypatch):
    run = begun()
    run.meta = run.agent.weights()
    now = run.meta + 1
    run.agent.load_weights(now)
    mean = lambda run, *_: dict.fromkeys(("success", *env.FAMILIES), run.agent.weights().mean())
    monkeypatch.setattr(mili.Run, "success", mean)
    results = run.evaluate(3)
    for name in ("success", *env.FAMILIES):
        assert results[name] == pytest.approx(now.mean())
        assert results["meta_" + name] == pytest.approx(run.meta.mean())
    np.testing.assert_array_equal(run.agent.weights(), now)


def test_trials_are_kept_as_they_were(begun, tmp_path):
    trials = begun().episodes[:3]
    mili.save_trials(tmp_path / "x.npz", trials, mark=7)
    found = mili.load_trials(tmp_path / "x.npz")
    same_trials(trials, [mili.with_pose(trial) for trial in found])  # so what it felt is, too
    mili.save_trials(tmp_path / "x.npz", [], mark=7)
    assert mili.load_trials(tmp_path / "x.npz") == mili.load_trials(tmp_path / "x.npz", 7) == []
    assert mili.load_trials(tmp_path / "x.npz", 8) is None


# -- pairs


def literal_pairs(f, what, alpha):
    """Algorithm 1, lines 17 to 23."""
    pairs, right, same = set(), 0, 0
    for n in range(len(f)):
        for m in range(n + 1, len(f)):
            alike = bool(set(np.flatnonzero(what[n])) & set(np.flatnonzero(what[m])))
            same += alike
            p = sum(a * b for a, b in zip(f[n].tolist(), f[m].tolist()))
            if p > alpha:
                pairs |= {(n, m), (m, n)}
                right += alike
    return pairs, right / max(len(pairs) // 2, 1), right / max(same, 1)


@pytest.mark.parametrize("block", [3, 7, 100])
def test_pairs_are_those_of_algorithm_1(block):
    rng = np.random.default_rng(0)
    f = rng.standard_normal((20, 3)).astype(np.float32)
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    what = (rng.random((20, 6)) < 0.3).astype(np.float32)
    expected, precision, recall = literal_pairs(f, what, 0.7)
    partners, worth = mili.pair("mili", f, what, 0.7, rng, block)
    found = {(n, int(m)) for n, row in enumerate(partners) for m in row if m >= 0}
    assert found == expected
    assert worth["pairs"] == len(expected) // 2
    np.testing.assert_allclose([worth["precision"], worth["recall"]], [precision, recall])
    shared = [(what[n] * what[m]).sum() > 0 for n, m in sorted(found)]
    assert worth["kept_precision"] == np.mean(shared)
    filled = (partners >= 0).astype(int)
    assert (np.diff(filled) <= 0).all()  # -1 comes last


@pytest.mark.parametrize("method", ["mili", "oracle"])
def test_of_many_partners_the_most_alike_are_kept(method):
    """Of a hundred along an arc, those nearest on either side."""
    angle = np.linspace(0, 1, 100)
    f = np.float32(np.stack([np.cos(angle), np.sin(angle)], 1))
    partners, worth = mili.pair(method, f, np.ones((100, 1)), 0.6, np.random.default_rng(0))
    half = mili.PARTNERS // 2
    near = [*range(50 - half, 50), *range(51, 51 + half)]
    assert sorted(partners[50]) == near
    assert worth["pairs"] > 100 * mili.PARTNERS


def test_the_oracle_pairs_what_achieved_the_same_and_chance_pairs_anything():
    rng = np.random.default_rng(0)
    what = np.eye(4, dtype=np.float32)[rng.integers(4, size=200)]
    f = np.ones((200, 1), np.float32)
    partners, worth = mili.pair("oracle", f, what, 0.5, rng)
    assert worth["precision"] == worth["recall"] == 1
    assert worth["pairs"] == np.triu(what @ what.T, 1).sum() > 200 * mili.PARTNERS
    mine, theirs = what.argmax(1)[:, None], what.argmax(1)[partners]
    assert (mine == theirs)[partners >= 0].all()
    partners, worth = mili.pair("random", f, what, 0.5, rng)
    assert (partners >= 0).all()
    assert (partners != np.arange(200)[:, None]).all()
    assert worth["pairs"] == 200 * 199 / 2
    assert abs(worth["precision"] - 0.25) < 0.03


def test_alpha_is_what_pairs_the_validation_tasks_best():
    f = np.array([[1, 0], [0.96, 0.28], [0, 1], [0.28, 0.96]])  # cosines 0.96; 0.54 at most
    what = np.eye(2)[[0, 0, 1, 1]]
    alpha = mili.choose_alpha(f, what, 2)
    assert 0.54 <= alpha < 0.96
    # of six pairs one's cosine is 0.54, two's are 0.96 and right
    F1 = mili.agreement(f, what, [0.5, alpha, 0.97], 2)
    assert F1.tolist() == [4 / 5, 1, 0]


def test_few_tasks_tell_what_pairs_of_many_are_worth():
    """With a fifth of the tasks, pairs of different ones are a fifth as likely to be met."""
    rng = np.random.default_rng(0)
    f = np.repeat(rng.normal(size=(200, 8)), 4, 0) + 0.4 * rng.normal(size=(800, 8))
    f, what = f / np.linalg.norm(f, axis=1, keepdims=True), np.repeat(np.eye(200), 4, 0)
    alphas = [0.7, 0.8]
    among_many = mili.agreement(f, what, alphas, 200)
    told = mili.agreement(f[:160], what[:160, :40], alphas, 200)
    seen = mili.agreement(f[:160], what[:160, :40], alphas, 40)
    assert np.abs(told - among_many).max() < 0.1
    assert (seen - among_many).min() > 0.15
    few = mili.choose_alpha(f[:160], what[:160, :40], 40)
    assert mili.choose_alpha(f[:160], what[:160, :40], 200) > few


def test_who_learns_from_many_demonstrations_is_judged_by_four():
    config = SimpleNamespace(demos="demos", per_task=40)
    paths = mili.demo_paths(config, "train", [3, 7])
    assert [path.name for path in paths] == [f"{t:03d}_{k}.npz" for t in (3, 7) for k in range(40)]
    paths = mili.demo_paths(config, "val", [3, 7])
    assert [path.name for path in paths] == [f"{t:03d}_{k}.npz" for t in (3, 7) for k in range(4)]


# -- runs


def test_what_f_was_trained_to_find_alike_is_paired(begun, monkeypatch):
    """Trained a little, f pairs the demonstrations it knows by their tasks, and tells how well."""
    for change in ("mirror_and_recolour", "mix_scenery"):
        monkeypatch.setattr(mili, change, lambda *_: None)  # these very demonstrations
    run = begun(updates=150, channels=16, trials=16, batch=8, lr=3e-3, lr_end=0.1)
    for _ in range(150):
        run.round()
    as_trials(run, run.episodes)
    chosen, choose = [], mili.choose_alpha
    monkeypatch.setattr(mili, "choose_alpha", lambda *of: chosen.append(of) or choose(*of))
    while run.phase()[0] != "improvement":
        told = run.round()
    ((of, _, tasks),) = chosen  # by validation demonstrations
    np.testing.assert_array_equal(of, run.look_at("val")[0])
    assert tasks == TASKS
    assert "pairs" in told
    partners, what = run.partners, run.trials.tasks.argmax(1)
    some = partners[:, 0] >= 0
    right = (what[partners[some, 0]] == what[some]).mean()
    chance = np.mean([(what == one).mean() for one in what])
    assert right > 5 * chance
    assert run.facts["precision"] > 5 * chance
    mixed = run.draw_trials(50, np.random.default_rng(0))
    assert (partners[mixed[:, 0]] == mixed[:, 1:]).any(1).all()


def by_the_operator(tasks):
    """An episode of each task, as demonstrations are; fewer than all, should it fail."""
    world = env.Kitchen(len(tasks), obs="features", size=32, tasks=tasks)
    operator, states, actions = env.Operator(world), [world.get_state()], []
    since = np.zeros(len(tasks), int)
    while len(ids := np.flatnonzero(since == 0)) and len(actions) < world.horizon:
        actions.append(np.float32(operator.act()))
        _, reward, _, _ = world.step(actions[-1], ids)
        states.append(world.get_state())
        since[ids[reward[ids] > 0]] = len(actions)
    states, actions, slots = np.stack(states, 1), np.stack(actions, 1), np.arange(len(env.SLOTS))
    every = [
        {"states": states[i], "actions": actions[i], "done_at": since[i],
         "scene": task.scene, "achieved": slots == task.slot}
        for i, task in enumerate(tasks) if since[i]
    ]  # fmt: skip
    return [mili.with_pose(mili.cut_when_done(episode)) for episode in every]


def test_a_trial_that_did_something_else_is_paired_with_what_it_did(begun):
    """Of eight tasks in two scenes; and not with whatever else was shown to it in its scene."""
    updates, tasks = 150, [task for task in env.tasks_of("train") if task.scene in (0, 1)]
    run = begun(updates=updates, channels=16, batch=8, lr=3e-3, lr_end=0.1)
    trials, demos = (by_the_operator(tasks * n) for n in (4, 10))
    run.trials, run.demos = (mili.Library(run.config, each, "") for each in (trials, demos))
    for _ in range(updates):
        run.round()
    f, rng = run.agent.embed(run.trials), np.random.default_rng(0)
    partners, _ = mili.pair("mili", f, run.trials.tasks, 0.8, rng)
    one, k = np.nonzero(partners >= 0)
    other, did = partners[one, k], run.trials.tasks.argmax(1)
    scene = np.array([trial["scene"] for trial in trials])
    right = (did[one] == did[other]).mean()
    shown = ((did[one] != did[other]) & (scene[one] == scene[other])).mean() / 3  # each of three
    chance = np.mean([(did == what).mean() for what in did])
    assert len(one) > 40
    assert right > 5 * chance
    assert right > 5 * shown


def test_a_robot_feels_whether_its_fingers_hold_something(begun):
    """In a demonstrated grasp: open, closing, and around the object; as in a trial."""
    run = begun()
    k = next(
        k for k, e in enumerate(run.episodes) if env.SLOTS[e["achieved"].argmax()][0] == "grasp"
    )
    part = slice(run.demos.first[k], run.demos.first[k] + run.demos.length[k])
    felt, told = run.demos.pose[part], run.demos.action[part, 6]
    assert felt[0, 7] == felt[0, 8] == 0
    np.testing.assert_allclose(felt[1:, 7], np.diff(felt[:, 6]))
    np.testing.assert_allclose(felt[1:, 8], felt[1:, 6] - told[:-1])
    closing = told.argmin()
    assert abs(felt[closing, 7:]).max() < 0.02  # open, and at rest
    assert felt[closing + 1, 7] < -0.02
    assert felt[-1, 8] > 0.02  # it holds
    assert abs(felt[-1, 7]) < 0.02


def test_steps_in_which_a_trial_stood_still_are_not_learned_from(begun):
    """A demonstration in which the robot hesitates three times is the one without.

    But for what it feels when it goes on: its fingers were at rest.
    """
    run, hesitates = begun(), [2, 5, 7]
    plain = mili.without_waiting(run.episodes[0])
    steps = np.arange(len(plain["actions"]))
    again = np.repeat(steps, 1 + np.isin(steps, hesitates) * 4)
    waiting = plain | {
        "states": plain["states"][np.append(again, len(steps))],
        "actions": plain["actions"][again],
    }
    assert len(waiting["actions"]) == len(plain["actions"]) + 12
    found = mili.without_waiting(waiting)
    np.testing.assert_array_equal(found["states"], plain["states"])
    np.testing.assert_array_equal(found["actions"], plain["actions"])
    was, felt = (mili.with_pose(e)["pose"] for e in (plain, waiting))
    assert abs(was[hesitates, 7]).max() > 0.02  # fingers were closing, in one of them
    goes_on = np.append(np.flatnonzero(again[1:] != again[:-1]), [len(again) - 1, len(again)])
    np.testing.assert_array_equal(found["pose"], felt[goes_on])
    assert (found["pose"][hesitates, 7] == 0).all()
    others = np.setdiff1d(np.append(steps, len(steps)), hesitates)
    np.testing.assert_array_equal(found["pose"][others], was[others])
    as_trials(run, [waiting] * 16)  # and so it is read
    for trial in run.read_trials(1)[0]:
        np.testing.assert_array_equal(trial["states"], plain["states"])


def test_a_damaged_chunk_is_told_once_its_trials_were_counted(begun):
    """Nobody makes it again then: the policy that tried has learned since."""
    run = begun()
    run.steps = run.config.updates + run.config.trials
    as_trials(run, run.episodes)
    path = sorted((run.folder / "trials/1").iterdir())[-1]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path.name} is missing or damaged: restore it"):
        run.round()


@pytest.mark.parametrize("rest", [None, b"", b"PK"])
def test_lost_pairs_are_told(begun, rest):
    run = begun()
    run.steps = run.config.updates + run.config.trials + 1
    as_trials(run, run.episodes)
    if rest is not None:
        (run.folder / "pairs1.npz").write_bytes(rest)
    with pytest.raises(ValueError, match=r"pairs1\.npz is missing or damaged: restore it"):
        run.start()


def test_of_more_trials_than_memory_holds_the_newest_are_kept(begun):
    """Of two rounds of sixteen as many as fit: all of the second, some of the first."""
    run = begun(rounds=2)
    as_trials(run, run.episodes)
    shutil.copytree(run.folder / "trials/1", run.folder / "trials/2")
    path = run.folder / "trials/2" / mili.chunk_name(0)
    newest = mili.load_trials(path)
    mili.save_trials(path, [trial | {"scene": 99} for trial in newest], run.who())
    length = [len(episode["states"]) for episode in run.episodes]
    run.config.memory_gb = 3 * run.config.size**2 * (sum(length) + sum(length[:5]) + 1) / 1e9
    trials, useful, tried = run.read_trials(2)
    assert (len(trials), useful, tried) == (len(length) + 5, len(length), 16)  # of the second
    new = [trial["scene"] == 99 for trial in trials]
    assert new == [k < len(newest) for k in range(len(trials))]


def test_trials_that_have_partners_are_drawn_alike_and_each_partner_of_theirs(begun):
    """However many partners they have; who has none is never drawn."""
    run = begun()
    run.partners = np.full((5, mili.PARTNERS), -1)
    run.partners[1, :3], run.partners[4, :1] = [0, 2, 3], 1
    drawn = run.draw_trials(30_000, np.random.default_rng(0))
    pairs, count = np.unique(drawn, axis=0, return_counts=True)
    assert pairs.tolist() == [[1, 0], [1, 2], [1, 3], [4, 1]]
    np.testing.assert_allclose(count / 30_000, [1 / 6, 1 / 6, 1 / 6, 1 / 2], atol=0.01)


def test_tiny_run_from_end_to_end(demos, tmp_path, capsys, monkeypatch):
    """All phases, a table and pictures; who stops in each, and adds a round, comes to the same."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(mili, "rollout", brief_and_useful)
    ends, short = [], SHORT | {"eval_every": 1000}
    short = [word for name, value in short.items() for word in (f"--{name}", str(value))]
    flags = ["mili", "--preset", "tiny", *short, "--demos", str(demos)]
    two = ["--rounds", "2"]

    def no_pictures(*_):
        raise ImportError("of the parts")

    draw = train.draw_curves
    kept, save = [], train.save
    watched = lambda folder, run, log: kept.append(run.steps) or save(folder, run, log)
    monkeypatch.setattr(train, "save", watched)
    for name, parts in (  # 20 updates, 16 trials, their pairs, 20 updates; 16 trials and so on
        ("whole", [(999, two)]),
        ("parts", [(10, []), (25, []), (45, []), (57, []), (60, two), (80, []), (999, [])]),
    ):
        out = tmp_path / name
        for part, more in parts:
            before = mili.Run.finished
            monkeypatch.setattr(mili.Run, "finished", lambda run, part=part: (
                run.steps >= min(part, run.config.steps)))  # fmt: skip
            again = ["mili", "--resume", str(out), *more]
            train.main(again if out.exists() else [*flags, *more, "--out", str(out)])
            monkeypatch.setattr(mili.Run, "finished", before)
        ends.append(train.load_newest(out))
        monkeypatch.setattr(train, "draw_curves", no_pictures)
        if name == "whole":  # where each phase ends: trials stay with the policy that tried
            assert {20, 36, 37, 57, 73, 74, 94} <= set(kept)
    assert len(list((out / "trials/2").iterdir())) == 4
    assert_same(ends[0]["learners"], ends[1]["learners"])
    out = tmp_path / "whole"
    for name in ("curves.png", "embedding.png", "rollouts.gif", "pairs.gif", "pairs1.npz"):
        assert (out / name).stat().st_size > 0
    told = capsys.readouterr().out
    assert re.search(r"\b8 episodes of val tasks +meta +mili\n", told)
    assert re.search(r"all four families +0\.\d{3} +0\.\d{3}\n", told)
    train.main(["eval", str(out), "--split", "val"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    results, again = (json.loads((out / f"{k}.json").read_text()) for k in ("results", "eval"))
    assert {k: line[k] for k in results} == results == again
    for name in ("results.json", "pairs.gif"):
        (out / name).unlink()  # killed before it could tell
    with pytest.raises(SystemExit, match="94 steps are taken, these --rounds have 57"):
        train.main(["mili", "--resume", str(out), "--rounds", "1"])
    assert json.loads((out / "config.json").read_text())["rounds"] == 2
    monkeypatch.setattr(train, "draw_curves", draw)
    train.main(["mili", "--resume", str(out)])
    assert json.loads((out / "results.json").read_text()) == results
    assert (out / "pairs.gif").stat().st_size > 0
    assert columns(out)[-1] == columns(tmp_path / "parts")[-1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_who_tries_the_preset_tiny_sees_trials_of_use_and_pairs(demos, tmp_path, seed):
    flags = ["--preset", "tiny", "--seed", str(seed), "--demos", str(demos)]
    train.main(["mili", *flags, "--out", str(tmp_path / "run")])
    with open(tmp_path / "run/metrics.csv") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["useful"]) > 0.02
    assert float(last["pairs"]) > 1


def test_the_table_has_what_lies_beside_a_run(tmp_path, config):
    """Of the same flags but for the method, judged at its end, by as many episodes.

    Damage is passed over, and so is what older code has left.
    """
    numbers = lambda x: dict.fromkeys(("success", *env.FAMILIES), x)
    first = {"meta_" + name: x for name, x in numbers(0.25).items()}
    flags = vars(config())
    for name, change, success, episodes, steps in (
        ("bc", {"method": "bc", "trials": 999}, 0.125, 40, 20),
        ("oracle", {"method": "oracle", "start": "x"}, 0.75, 40, 57),
        ("early", {"method": "oracle"}, 0.625, 40, 56),
        ("random", {"method": "random", "seed": 1}, 0.5, 40, 57),
        ("longer", {"share": 0.0, "trials": 999, "validation": 9}, 0.375, 40, 40),  # has none
        ("meta", {"method": "meta"}, 0.5, 400, 20),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(flags | change))
        found = numbers(success) | {"val_episodes": episodes, "steps": steps}
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.json").write_text("{")
    older = {name: value for name, value in flags.items() if name != "tries"}
    for name, method, steps in (("old", "mili", {}), ("old_bc", "bc", {"steps": 20})):
        (tmp_path / name).mkdir()  # by code that had no --tries or did not tell how far it was
        (tmp_path / name / "config.json").write_text(json.dumps(older | {"method": method}))
        found = numbers(1) | {"val_episodes": 40} | steps
        (tmp_path / name / "results.json").write_text(json.dumps(found))
    mine = numbers(0.5) | first | {"val_episodes": 40, "steps": 57}
    lines = mili.table(tmp_path / "mine", config(), mine)
    words = lambda line: re.sub(" +", " ", line)
    assert words(lines[0]) == "40 episodes of val tasks bc meta updates mili oracle"
    assert words(lines[1]) == "all four families 0.125 0.250 0.375 0.500 0.750"
    assert words(lines[-1]) == "the paper, its test tasks less 0.239 0.327 0.337"
    lines = mili.table(tmp_path / "mine", config(), mine | {"steps": 30})
    assert lines[-1] == "mili after 30 of its 57 steps"
    lines = mili.table(tmp_path / "mine", config(method="bc"), mine | {"steps": 20})
    assert lines[0].split()[5:] == ["bc", "updates", "oracle"]
    lines = mili.table(tmp_path / "mine", config(share=0.0), mine | {"steps": 40})
    assert words(lines[0]) == "40 episodes of val tasks bc meta updates oracle"  # no MILI
    assert words(lines[1]) == "all four families 0.125 0.250 0.500 0.750"
    assert "steps" not in lines[-1]


def test_what_is_alike_is_near_in_the_picture():
    """Eight tasks of four demonstrations each: everybody's three nearest are of its own task."""
    rng, task = np.random.default_rng(0), np.arange(32) // 4
    f = rng.normal(size=(8, 32))[task] + 0.3 * rng.normal(size=(32, 32))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    points = train.neighbours(f)
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    nearest = distance.argsort(1)[:, 1:4]
    assert (task[nearest] == task[:, None]).all()


# -- bad input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"method": "mlii"}, "--method is 'mlii'; it is one of mili, meta, bc, oracle, random"),
        ({"augment": "maybe"}, "--augment is 'maybe'; it is one of yes, no"),
        ({"per_task": 1}, "--per_task is 1; expected a number from 2 to 100"),
        ({"share": 0.9}, "--share 0.9 leaves fewer than two pairs of demonstrations"),
        ({"batch": 9}, "--batch 9 has a pair of each task: it needs as many --tasks"),
        ({"tasks": 521}, "--tasks is 521; expected a number from 4 to 520"),
        (
            {"per_task": 3},
            "make some with: python train.py demos --world kitchen --count 3 --demos",
        ),
        ({"share": 0.01}, "--share 0.01 of --batch 4 is less than a pair"),
        ({"size": 33}, "--size is 33; it has to be even"),
        ({"start": "x", "method": "bc"}, "--method bc has no trials to take over; leave out"),
        ({"start": "nowhere"}, "--start nowhere: no run that has a first policy"),
    ],
)
def test_what_no_run_could_have_is_refused(begun, flags, words):
    with pytest.raises(ValueError) as error:
        begun(**flags)
    assert words in str(error.value)


def test_a_file_that_shows_another_task_is_refused(config, demos, tmp_path):
    shutil.copytree(demos, tmp_path / "demos")
    folder = tmp_path / "demos/kitchen/train"
    first, other = sorted(folder.iterdir())[:3:2]
    shutil.copy(other, first)
    with pytest.raises(ValueError, match=r"does not show task \d+ of train"):
        mili.make_run(config(demos=str(tmp_path / "demos")))


def test_no_useful_trial_or_no_pair_says_what_to_change(begun):
    run = begun()
    run.steps = run.config.updates
    for k in range(4):
        path = run.folder / "trials/1" / mili.chunk_name(k)
        mili.save_trials(path, run.episodes[:1] * (k == 0), run.who())
    while run.phase()[0] == "trials":
        run.round()
    with pytest.raises(ValueError, match=r"of 16 trials, 1 did anything useful: .*--updates"):
        run.round()
    as_trials(run, run.episodes)
    run.config.alpha = 1.0
    words = r"no two trials are more alike than α = 1.00, .*a lower --alpha, such as 0\.\d\d; the"
    with pytest.raises(ValueError, match=words):
        run.round()
    run.config.method = "oracle"
    as_trials(run, run.episodes[:: run.config.per_task])
    with pytest.raises(ValueError, match=r"no two trials have a task in common: .*--trials"):
        run.round()
    run.config.memory_gb = 1e-6
    with pytest.raises(ValueError, match=f"1e-06 holds 0 trials: --resume {run.folder} with more"):
        run.round()
    assert len(list((run.folder / "trials/1").iterdir())) == 4  # what was collected stays


def test_a_full_disk_stops_the_collecting_and_leaves_what_is_there(begun, monkeypatch):
    run = begun()
    run.steps = run.config.updates
    run.round()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(env, "write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        run.round()
    assert len(list((run.folder / "trials/1").iterdir())) == 1


def test_a_run_may_take_over_the_policy_and_trials_of_another(begun, tmp_path):
    first = begun(updates=3)
    for _ in range(3):
        first.round()
    as_trials(first, first.episodes)
    second = mili.make_run(SimpleNamespace(**vars(first.config) | {"start": str(first.folder)}))
    (first.folder / "config.json").write_text(json.dumps(vars(first.config) | {"method": "meta"}))
    with pytest.raises(ValueError, match="is a run without trials; leave it out"):
        second.start()
    for name, other in (("robots", 2), ("augment", "no"), ("updates", 9), ("seed", 1)):
        (first.folder / "config.json").write_text(json.dumps(vars(first.config) | {name: other}))
        with pytest.raises(ValueError, match=f"has --{name} {other}; say so here, too"):
            second.start()
    (first.folder / "config.json").write_text(json.dumps(vars(first.config)))
    np.save(first.folder / "meta.npy", first.meta[:-1])  # of another version of this code
    with pytest.raises(ValueError, match="its first policy is of other networks"):
        second.start()
    np.save(first.folder / "meta.npy", first.meta)
    (first.folder / "config.json").write_text(json.dumps(vars(first.config) | {"start": "other"}))
    with pytest.raises(ValueError, match="goes on from another: --start other"):
        second.start()
    (first.folder / "config.json").write_text(json.dumps(vars(first.config)))
    second.folder = tmp_path / "second"
    second.mark += 1
    with pytest.raises(ValueError, match="is damaged, or of other demonstrations than"):
        second.start()
    second.mark -= 1
    second.start()
    np.testing.assert_array_equal(second.agent.weights(), first.agent.weights())
    while second.phase()[0] == "trials":
        second.round()
    assert not (tmp_path / "second/trials").exists()
    second.config.trials, second.crew, second.steps = 99, None, 3
    with pytest.raises(ValueError, match="fewer trials than --trials 99"):
        second.round()
