"""The people who stack, and the files in which demonstrations are kept."""

import os
import pickle
import struct
import tracemalloc
import zipfile
from time import perf_counter

import numpy as np
import pytest

import env


class Film:
    """What a person does in n episodes: stages, hand and blocks at each step, actions."""

    def __init__(self, by, n=80, horizon=200):
        world = env.Stack(n, seed=11, horizon=horizon)
        person = env.Person(world, by, seed=11)
        stages, tools, actions, start = [], [], [], world.block_a[0].copy()
        for _ in range(horizon):
            actions.append(person.act())
            world.step(actions[-1])
            stages.append(world.stage())
            tools.append(person.tool())
        self.stages, self.tools, self.actions = map(np.array, (stages, tools, actions))
        self.returns = env.REWARDS["stack"][self.stages].sum(0)
        self.stacked = self.stages[-1] == 3
        self.frame = [np.flatnonzero(s != 3)[-1] + 2 for s in self.stages.T[self.stacked]]
        self.frame = np.array(self.frame)  # from which on it stays stacked
        self.first = self.tools - start  # of the hand from where the block lay


@pytest.fixture(scope="module")
def films():
    return {by: Film(by) for by in env.PEOPLE}


# -- people


def test_both_people_succeed(films):
    for film in films.values():
        assert film.stacked.mean() >= 0.95


def test_a_stacks_at_about_frame_110(films):
    assert 100 < films["A"].frame.mean() < 120


def test_b_is_slower_by_as_much_as_in_the_paper(films):
    ratio = films["B"].returns.mean() / films["A"].returns.mean()
    assert 0.75 <= ratio <= 0.85  # the paper: 285 / 355


def test_each_episode_is_different(films):
    for film in films.values():
        assert film.frame.std() >= 0.15 * film.frame.mean()


def test_people_drive_the_same_nine_actions_within_their_limits(films):
    for film in films.values():
        assert film.actions.shape[1:] == (80, 9)
        assert np.abs(film.actions).max() <= 1


def test_a_comes_from_the_right_and_b_from_the_left(films):
    side = {}
    for by, film in films.items():
        away = np.linalg.norm(film.first[..., :2], axis=2)
        low = film.first[..., 2] < 0.12
        early = low & (away > 0.02) & (np.arange(200)[:, None] < 40)
        early &= np.cumsum(away < 0.02, 0) == 0
        side[by] = np.array(
            [film.first[early[:, i], i, 0].mean() for i in range(80) if early[:, i].any()]
        )
    assert (side["A"] > 0).mean() > 0.6
    assert (side["B"] < 0).mean() > 0.6
    assert side["A"].mean() - side["B"].mean() > 0.03


def test_b_carries_higher_and_trembles_more(films):
    top, tremble = {}, {}
    for by, film in films.items():
        lifted = film.stages == 2
        top[by] = np.where(lifted, film.tools[..., 2], 0).max(0).mean()
        jerk = np.diff(film.tools[150:, film.stacked], 3, axis=0)  # of a hand that only waits
        tremble[by] = np.median(np.abs(jerk))
    assert top["B"] > top["A"] + 0.02
    assert tremble["B"] > 1.5 * tremble["A"]


def test_a_lost_block_is_fetched_again():
    world = env.Stack(1, seed=2)
    person = env.Person(world, "A")
    while world.stage() != 2:
        world.step(person.act())
    state = world.get_state()
    state[:, 10:17] = [0.0, -0.06, env.HALF, 1, 0, 0, 0]  # lies on the table again
    state[:, 17:24] = [0.06, 0.06, env.HALF, 1, 0, 0, 0]
    world.set_state(state)
    for _ in range(150):
        world.step(person.act())
    assert world.stage() == 3


def test_in_longer_episodes_people_take_their_time():
    film = Film("A", n=8, horizon=600)
    assert film.frame.mean() > 200


# -- files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("demos")
    env.make_demos(root / "A", "stack", "A", count=3)
    env.make_demos(root / "val", "kitchen", "val", count=1)
    return root


def test_a_demonstration_holds_what_happened(folder):
    keys = ("states", "actions", "rewards", "dones", "obs/features", "obs/body")
    demo = env.load_demo(folder / "A" / "0000.npz", "stack", keys)
    assert (demo["world"], demo["by"], demo["version"]) == ("stack", "A", env.VERSION)
    assert [len(demo[k]) for k in keys] == [201, 200, 200, 200, 201, 201]
    assert demo["dones"].tolist() == [False] * 199 + [True]
    world = env.Stack(1)
    world.set_state(demo["states"][:1])
    for t in range(200):  # the actions do it again, bit for bit
        _, reward, _, _ = world.step(demo["actions"][t : t + 1])
        assert reward == demo["rewards"][t]
        np.testing.assert_array_equal(world.get_state()[0], demo["states"][t + 1])
        np.testing.assert_array_equal(world.features()[0], demo["obs/features"][t + 1])
        np.testing.assert_array_equal(world.body()[0], demo["obs/body"][t + 1])


def test_a_kitchen_demonstration_ends_in_success(folder):
    paths = sorted((folder / "val").glob("*.npz"))
    assert len(paths) == 40
    for path, task in zip(paths, env.tasks_of("val"), strict=True):
        demo = env.load_demo(path, "kitchen", ("states", "rewards"))
        assert (demo["scene"], demo["slot"]) == task
        assert 5 < len(demo["rewards"]) <= 50
        world = env.Kitchen(1, tasks=[task], obs="features")
        world.set_state(demo["states"][-1:])
        assert world.achieved()[0, task.slot]


def test_demonstrations_are_the_same_again_and_only_missing_ones_are_made(folder, tmp_path):
    env.make_demos(tmp_path, "stack", "A", count=3, processes=1)
    for name in ("0000.npz", "0002.npz"):
        one, other = (env.load_demo(f / name, "stack")["states"] for f in (folder / "A", tmp_path))
        np.testing.assert_array_equal(one, other)
    before = (tmp_path / "0000.npz").stat().st_mtime_ns
    env.make_demos(tmp_path, "stack", "A", count=4)
    assert (tmp_path / "0000.npz").stat().st_mtime_ns == before
    assert (tmp_path / "0003.npz").exists()
    with pytest.raises(ValueError, match="made with another --seed"):
        env.make_demos(tmp_path, "stack", "A", count=5, seed=1)
    with pytest.raises(ValueError, match=r"0000.npz has 200 steps, not --horizon 210; make these"):
        env.make_demos(tmp_path, "stack", "A", count=5, horizon=210)
    with pytest.raises(ValueError, match="count is 0"):
        env.make_demos(tmp_path, "stack", "A", count=0)
    with pytest.raises(ValueError, match="by is 'C'; it is one of A, B"):
        env.make_demos(tmp_path, "stack", "C", count=1)


def killed(_):
    os._exit(9)


def test_a_killed_maker_of_demonstrations_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr(env, "_demonstrate", killed)
    with pytest.raises(RuntimeError, match="died; is memory short"):
        env.make_demos(tmp_path, "stack", "A", count=1)


def test_people_know_where_they_belong():
    with pytest.raises(ValueError, match="give it a Stack world"):
        env.Person(env.Kitchen(1, obs="features"), "A")
    with pytest.raises(ValueError, match="give it a Kitchen"):
        env.Operator(env.Stack(1))


def test_a_person_notices_by_itself_that_an_episode_begins():
    world = env.Stack(2)
    person = env.Person(world, "A")
    for _ in range(60):
        world.step(person.act())
    old = person.script.copy()
    world.reset([1])
    person.act()
    np.testing.assert_array_equal(person.script[0], old[0])
    assert (person.script[1] != old[1]).any()
    assert person.phase[0] > 0
    assert person.phase[1] == 0


def test_actions_and_rewards_are_read_only_by_name(folder, tmp_path):
    """With NaN in their place nobody notices who does not ask for them."""
    path = tmp_path / "nan.npz"
    arrays = dict(np.load(folder / "A" / "0000.npz", allow_pickle=False))
    arrays["actions"], arrays["rewards"] = arrays["actions"] * np.nan, arrays["rewards"] * np.nan
    np.savez(path, **arrays)
    assert {"actions", "rewards", "dones"}.isdisjoint(env.load_demo(path, "stack"))
    for key in ("actions", "rewards"):
        with pytest.raises(ValueError, match=rf"nan.npz: .*: {key} holds a NaN"):
            env.load_demo(path, "stack", (key,))


def test_a_folder_is_loaded_in_order_and_must_hold_enough(folder):
    demos = env.load_demos(folder / "A", "stack", count=2)
    one = env.load_demo(folder / "A" / "0001.npz", "stack")
    np.testing.assert_array_equal(demos[1]["states"], one["states"])
    with pytest.raises(ValueError, match=r"holds 0 .*, 1 wanted; .*train.py demos --world kitchen"):
        env.load_demos(folder / "none", "kitchen")
    with pytest.raises(ValueError, match=r"holds 3 demonstrations, 4 wanted.*demos --count 4$"):
        env.load_demos(folder / "A", "stack", count=4)
    with pytest.raises(ValueError, match=r"demos --horizon 60 --count 700 --demos x$"):
        env.load_demos("x/stack60/A", "stack", count=700)
    with pytest.raises(ValueError, match=r"demos --world kitchen --demos x$"):
        env.load_demo("x/kitchen/train/000_0.npz", "kitchen")
    with pytest.raises(ValueError, match="holds 0 demonstrations"):
        env.load_demos(folder, "stack")


# -- files by others


def npy(shape="(201, 66)", kind="<f8", data=b"", length=None, order=False):
    """A member of a file as numpy writes it, but for what is given."""
    header = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"
    header = (header + " " * (63 - (len(header) + 10) % 64) + "\n").encode()
    size = len(header) if length is None else length
    return b"\x93NUMPY\x01\x00" + min(size, 65535).to_bytes(2, "little") + header + data


class Trap:
    def __reduce__(self):
        return os.system, ("touch sprung",)


def states(*args, **more):
    return {"states.npy": npy(*args, **more)}


def number(kind, value):
    return npy("()", kind, np.array(value, kind).tobytes())


OTHER = npy("()", "<U16", "kitchen".encode("utf-32-le").ljust(64, b"\0"))
LONG_HEADER = npy("(201, " + " " * 60000 + "66)")
PICKLED = pickle.dumps(np.array([Trap()], object))
HOSTILE = {  # name: what is put into a good file, and what the error says
    "another_world": ({"world.npy": OTHER}, "world 'kitchen'"),
    "another_version": ({"version.npy": number("<i8", 99)}, "version 99"),
    "pickle_inside": (states(kind="|O", data=PICKLED), "states is not an array of float64"),
    "missing_key": ({"seed.npy": None}, "seed.npy"),
    "wrong_shape": (states("(201, 60)", data=bytes(201 * 60 * 8)), r"not an array .* \(201, 66\)"),
    "wrong_type": (states(kind="<f4", data=bytes(201 * 66 * 4)), "not an array of float64"),
    "wrong_order": (states(order=True, data=bytes(201 * 66 * 8)), "not an array of float64"),
    "one_frame": (states("(1, 66)", data=bytes(66 * 8)), "0 steps"),
    "too_long": (states("(20000000, 66)"), "19999999 steps"),
    "negative": (states("(-5, 66)"), "-6 steps"),
    "no_rows": (states("()", data=bytes(8)), "states is a number"),
    "shorter_than_said": (states(data=bytes(1000)), "states is not"),
    "bomb": (states(data=bytes(3 * 10**8)), "states is not"),
    "huge_header": ({"states.npy": b"\x93NUMPY\x02\x00" + b"\xff" * 9999}, "another version"),
    "long_header": ({"states.npy": LONG_HEADER}, "Header info length"),
    "ten_gigabytes": (states("(201, 6600000)"), r"shape \(201, 66\)"),
    "not_a_number": (states(data=bytes(201 * 66 * 8 - 8) + b"\xff" * 8), "states"),
    "no_array": ({"states.npy": b"hello"}, "magic|EOF"),
    "not_a_dictionary": (states("(201, [66)"), "no demonstration"),
    "many_digits": (states("(" + "9" * 800 + ", 66)"), "no demonstration"),
    "terminal_codes": ({"world.npy": number("<U16", "a\x1b[31m\nb")}, "names are not text"),
    "no_letters": ({"by.npy": npy("()", "<U16", b"\xff" * 64)}, "names are not text"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_at_once_by_name(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoilt, fault = HOSTILE[name]
    with zipfile.ZipFile(folder / "A" / "0000.npz") as good:
        members = {info.filename: good.read(info) for info in good.infolist()}
    path = tmp_path / f"{name}.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bad:
        for member, data in (members | spoilt).items():
            if data is not None:
                bad.writestr(member, data)
    check_refused_at_once(path, fault)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_may_unpack_to_anything_are_refused_at_once(packing, folder, tmp_path):
    """Asked for the first bytes of a header, these two unpack all that they are given: 30 MB."""
    path = tmp_path / "packed.npz"
    path.write_bytes((folder / "A" / "0000.npz").read_bytes())
    with zipfile.ZipFile(path) as good:
        members = {info.filename: good.read(info) for info in good.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad:
        for member, data in (members | states(data=bytes(3 * 10**7))).items():
            bad.writestr(member, data, packing if member == "states.npy" else None)
    check_refused_at_once(path, "states is packed in another way")


def check_refused_at_once(path, fault):
    tracemalloc.start()
    start = perf_counter()
    with pytest.raises(ValueError, match=fault) as error:
        env.load_demo(path, "stack")
    assert perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()
    assert str(error.value).startswith(str(path))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(path)) + 200


@pytest.mark.parametrize("left", [0, 1, 100, 5_000, -1, -30, -2_000])
def test_a_truncated_file_is_refused(left, folder, tmp_path):
    path = tmp_path / "cut.npz"
    path.write_bytes((folder / "A" / "0000.npz").read_bytes()[:left])
    check_refused_at_once(path, "truncated, damaged or no demonstration")


def test_a_flipped_bit_is_noticed(folder, tmp_path):
    data = bytearray((folder / "A" / "0000.npz").read_bytes())
    data[2_000] ^= 1  # inside the states
    path = tmp_path / "flipped.npz"
    path.write_bytes(data)
    check_refused_at_once(path, "flipped.npz")


def test_what_is_no_file_or_a_plain_pickle_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        env.load_demo(tmp_path / "none.npz", "stack")
    path = tmp_path / "pickle.npz"
    path.write_bytes(pickle.dumps(Trap()))
    check_refused_at_once(path, "no small .npz archive")
    path.write_bytes(b"")
    os.truncate(path, 200_000_000)
    check_refused_at_once(path, "larger than 20 MB")


def test_a_directory_of_countless_entries_is_not_even_read(tmp_path):
    path = tmp_path / "many.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(20_000):
            archive.writestr(str(k), b"")
    check_refused_at_once(path, "no small .npz archive")
    data, end = path.read_bytes()[:-22], path.read_bytes()[-22:]
    size, begin = struct.unpack("<II", end[12:20])  # told small, but zip64's record tells more
    more = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 20_000, 20_000, size, begin)
    more += struct.pack("<4sIQI", b"PK\6\7", 0, len(data), 1)
    path.write_bytes(data + more + end[:12] + struct.pack("<I", 500) + end[16:])
    assert len(zipfile.ZipFile(path).namelist()) == 20_000
    check_refused_at_once(path, "no small .npz archive")


def test_a_fortran_ordered_array_is_saved_in_its_own_order(folder, tmp_path):
    keys = tuple(env.ARRAYS)
    demo = env.load_demo(folder / "A" / "0000.npz", "stack", keys)
    turned = {key: np.asfortranarray(demo[key]) for key in keys}
    env.save_demo(tmp_path / "f.npz", turned, "stack", 0, "A")
    again = env.load_demo(tmp_path / "f.npz", "stack", keys)
    for key in keys:
        np.testing.assert_array_equal(again[key], demo[key])


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def fails(file):
        file.write(b"half")
        raise OSError("disk full")

    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "kept"
    env.write_atomically(path, lambda file: file.write(b"old"))
    with pytest.raises(OSError, match="disk full"):
        env.write_atomically(path, fails)
    assert path.read_bytes() == b"old"
    assert len(synced) == 1  # and lay on the disk before it took its name
    assert os.listdir(tmp_path) == ["kept"]


def test_a_demonstration_with_other_keys_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"not just the keys it should: .*actions"):
        env.save_demo(tmp_path / "x.npz", {"states": np.zeros((2, 66))}, "stack", 0, "A")
    assert not os.listdir(tmp_path)
