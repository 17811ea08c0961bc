"""What the README claims is what results/ holds, and each claim can be measured again."""

import csv
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import train
from figures import common
from figures import metamimic as figures
from figures import mili as kitchen

ROOT = Path(train.__file__).parent
CLAIMS = json.loads((ROOT / "results/summary.json").read_text())


def test_the_readmes_tables_are_made_from_the_summary():
    """And each claim is in one of them, but for how long MILI takes: the text tells that."""
    text = (ROOT / "README.md").read_text()
    tables = figures.tables(CLAIMS) | kitchen.tables(CLAIMS)
    assert text.count(", of summary.json -->") == len(tables)
    for name, table in tables.items():
        assert text.split(f"<!-- {name}, of summary.json -->\n")[1].split("<!-- end")[0] == table
    for k, claim in enumerate(CLAIMS):
        other = [*CLAIMS[:k], claim | {"ours": 77.7, "spread": [77.7, 77.7]}, *CLAIMS[k + 1 :]]
        tells = figures.tables(other) | kitchen.tables(other) != tables
        assert tells or claim["claim"] == "mili_minutes_two_cores", claim["claim"]


def test_the_readme_tells_how_long_the_files_are():
    told = re.findall(r"^\| \[(\w+\.py)\].* \| ([\d,]+) \|", (ROOT / "README.md").read_text(), re.M)
    assert len(told) == 7
    for name, lines in told:
        assert f"{len((ROOT / name).read_text().splitlines()):,}" == lines, name


def test_every_claim_tells_how_it_was_measured():
    names = [claim["claim"] for claim in CLAIMS]
    assert len(set(names)) == len(names) > 0
    for claim in CLAIMS:
        assert set(claim) == {"claim", "paper", "ours", "spread", "seeds", "command", "commit",
                              "hardware", "minutes"}  # fmt: skip
        low, high = claim["spread"]
        assert low <= claim["ours"] <= high
        assert claim["command"].startswith("python train.py ")
        assert re.fullmatch(r"[0-9a-f]{7,}(, [0-9a-f]{7,})*", claim["commit"])
        assert claim["seeds"] >= 3  # as the README says
        assert claim["minutes"] > 0


def test_claims_are_means_of_the_seeds_in_results(monkeypatch):
    """Worked out anew from the evaluation of every seed; D4PG's returns as parts of A's."""
    monkeypatch.chdir(ROOT)
    _, made, *_ = json.loads(Path("results/worlds.json").read_text())  # 500 demonstrations each
    theirs = made["result"]["A"]["return"]  # rounded there, so that 1e-3 is as close as this goes
    for claim in CLAIMS:
        run, column, _ = figures.CLAIMS.get(claim["claim"], (None, None, None))
        if column:
            paths = sorted(Path("results/metamimic").glob(f"{run}-*.json"))
            values = np.array([json.loads(path.read_text())[column] for path in paths])
            values /= theirs if column == "eval_return" else 1
            assert len(values) == claim["seeds"]
            assert claim["ours"] == pytest.approx(np.mean(values), rel=1e-3)
            assert claim["spread"] == pytest.approx([min(values), max(values)], rel=1e-3)


def test_milis_claims_are_of_all_seeds_in_results(monkeypatch):
    """The summary is what the evaluations come to; what is gained, worked out anew."""
    monkeypatch.chdir(ROOT)
    mine = {claim["claim"]: claim for claim in CLAIMS}
    found = kitchen.claims()
    assert [mine[claim["claim"]] for claim in found] == json.loads(json.dumps(found))
    paths = Path("results/mili").glob("round_1-*.json")
    runs = [json.loads(path.read_text()) for path in paths]
    after, before = (sum(run[name] for run in runs) for name in ("success", "meta_success"))
    assert mine["mili_relative_gain"]["ours"] == pytest.approx(after / before - 1, abs=1e-5)


def test_a_curve_ends_where_its_run_did():
    for path in ROOT.glob("results/m*/*-*.json"):
        with open(path.with_suffix(".csv")) as file:
            last = list(csv.DictReader(file))[-1]
        facts = json.loads(path.read_text())
        assert int(last["steps"]) == facts["steps"]
        assert float(last["seconds"]) / 60 == pytest.approx(facts["minutes"], abs=0.06)


def test_a_seed_that_is_missing_is_trained_as_those_in_results_were():
    """Seeds of one name are of one command, the one that `seeds` runs."""
    for path in ROOT.glob("results/mili/*-*.json"):
        facts = json.loads(path.read_text())
        name, seed = path.stem.rsplit("-", 1)
        words = kitchen.RUNS[name].format(seed=seed)
        further = "--resume" in words
        run = words.split()[2] if further else f"runs/{path.stem}"
        out = "" if further else f" --seed {seed} --out {run}"
        assert facts["command"] == f"python train.py {words}{out}"
        assert facts["run"] == run or "carried_on" in facts


def test_a_result_is_of_the_run_that_its_command_tells(tmp_path, monkeypatch):
    """Rounds share a folder: no round is judged as another, and none is begun before that one."""
    stopped = []

    def run(words, **_):
        if words[2] == "eval":
            return SimpleNamespace(stdout=Path(words[3], "results.json").read_text())
        folder = Path(words[words.index("--out" if "--out" in words else "--resume") + 1])
        folder.mkdir(exist_ok=True)
        (folder / "metrics.csv").write_text("steps,seconds\n1,60\n")
        if not stopped:
            (folder / "results.json").write_text(json.dumps({"words": words[2:]}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(common, "commit", lambda: "abc")
    Path("runs").mkdir()
    results = Path("results")
    results.mkdir()
    commands = {"one": "mili --save_minutes 5", "two": "mili --resume runs/one-0 --rounds 2"}
    begin = lambda name: common.run_once(results, name, commands[name], 0)
    judged = lambda name: json.loads((results / f"{name}-0.json").read_text())["words"]
    with pytest.raises(SystemExit, match="not here, or not judged"):
        begin("two")
    stopped.append(True)
    with pytest.raises(SystemExit, match="stopped before its end"):
        begin("one")
    with pytest.raises(SystemExit, match="not judged"):
        begin("two")
    stopped.clear()
    begin("one")
    assert judged("one") == ["mili", "--resume", "runs/one-0"]  # it went on
    stopped.append(True)
    with pytest.raises(SystemExit, match="stopped before its end"):
        begin("two")
    stopped.clear()
    begin("two")
    assert judged("two") == commands["two"].split()
    (results / "one-0.json").unlink()
    with pytest.raises(SystemExit, match="begun by other code or flags"):
        begin("one")  # its folder is that of two rounds
