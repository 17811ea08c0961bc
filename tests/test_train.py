"""The command line does what its help says, and tells what it cannot do."""

import os
import re
from pathlib import Path

import pytest

import env
import train


def test_demos_makes_files_and_tells_how_good_they_are(tmp_path, capsys):
    train.main(["demos", "--demos", str(tmp_path), "--count", "2"])
    assert sorted(os.listdir(tmp_path / "stack200")) == ["A", "B"]
    assert len(os.listdir(tmp_path / "stack200" / "B")) == 2
    out = capsys.readouterr().out
    assert out.startswith("A: 2 demonstrations in ")
    assert "stacked 100.0 %" in out


@pytest.mark.parametrize("ending", ["gif", "png"])
@pytest.mark.parametrize("world", ["stack", "kitchen"])
def test_look_draws_a_picture(world, ending, tmp_path):
    image = pytest.importorskip("PIL.Image")
    out = tmp_path / f"look.{ending}"
    train.main(["look", "--world", world, "--size", "40", "--out", str(out)])
    with image.open(out) as picture:
        wide = 2 if world == "stack" else 4
        assert picture.size == ((40 * wide, 40) if ending == "gif" else (320, 40 * wide))
        assert getattr(picture, "n_frames", 1) > (20 if ending == "gif" else 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["look", "--outt", "x.gif"], "unrecognized arguments: --outt"),
        (["look", "--ou", "x.gif"], "unrecognized arguments: --ou"),
        (["look", "--size", "big"], "invalid int value: 'big'"),
        (["demos", "--world", "garden"], "invalid choice: 'garden'"),
        (["dance"], "invalid choice: 'dance'"),
        (["--count", "0"], "--count is 0; expected 1 or more"),
    ],
)
def test_a_typo_is_an_error(words, message, capsys):
    with pytest.raises(SystemExit):
        train.main(words)
    assert message in capsys.readouterr().err


def test_what_a_world_refuses_is_one_line():
    with pytest.raises(SystemExit, match=r"^train.py: --out is x.txt; it ends in .gif or .png$"):
        train.main(["look", "--out", "x.txt"])
    with pytest.raises(
        SystemExit, match=r"^train.py: size is 5; expected a whole number from 32 to 256"
    ):
        train.main(["look", "--size", "5"])


def test_without_a_command_it_makes_demonstrations_and_shows_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main(["--count", "1", "--size", "40"])
    assert sorted(os.listdir()) == ["demos", "look.gif"]
    assert (tmp_path / "demos/stack200/B/0000.npz").exists()


def test_every_flag_is_explained(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    flags = re.findall(r"^  (--\w+)[^\n]*?(?:\s{2,}|\n\s+)(\S[^\n]*)", text, re.MULTILINE)
    assert len(flags) == len(re.findall(r"^  --", text, re.MULTILINE)) == 8
    assert all(len(words) > 10 for _, words in flags)


def test_the_readmes_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium")
    monkeypatch.chdir(tmp_path)
    env.make_demos("demos/stack200/A", "stack", "A", count=10)
    text = (Path(train.__file__).parent / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    names = {}
    exec(example, names)
    assert names["obs"].shape == (32, 51)
    assert "actions" not in names["demos"][0]
    assert "actions" in names["clones"][0]
