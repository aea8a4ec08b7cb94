"""Comparisons of two arms that need no training."""

import dataclasses

import pytest
from comparisons import contents

from bench.experiments import runs
from tools import Refusal

WHOLE = [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


class Played:
    """Rows out of nothing, but for an interruption at one of them."""

    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def __call__(self, name, seed, quick):
        self.seen.append((name, seed))
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        return {"arm": name, "seed": seed, "quick": quick}


def compared(play, **changes):
    given = runs.Comparison(
        name="nothing",
        words="Nothing.",
        arms={"a": {"lr": 1}, "b": {"lr": 2}},
        recipe=lambda quick: {"steps": 1 if quick else 2},
        judge="none",
        play=play,
        lines=lambda rows: [f"{len(rows)} rows"],
        seeds=2,
    )
    return dataclasses.replace(given, **changes)


def keys(content):
    return [(row["arm"], row["seed"]) for row in content["rows"]]


def test_a_run_goes_on_from_where_it_stopped(tmp_path, capsys):
    path = tmp_path / "found.json"
    first, second, third = Played(stop_at=3), Played(), Played()
    with pytest.raises(KeyboardInterrupt):
        runs.run(compared(first), ["--out", str(path)])
    (stopped,) = contents(tmp_path)
    assert (stopped["complete"], keys(stopped)) == (False, WHOLE[:2])
    assert runs.run(compared(second), ["--out", str(path)]) == 0
    (whole,) = contents(tmp_path)
    assert (whole["complete"], keys(whole), second.seen) == (True, WHOLE, WHOLE[2:])
    assert (whole["recipe"], whole["command"][-9:]) == ({"steps": 2}, "--seeds 2")
    assert "4 rows" in capsys.readouterr().out
    runs.run(compared(third), ["--out", str(path)])
    assert third.seen == WHOLE  # a whole file is not gone on with


def test_rows_of_other_arms_are_not_kept(tmp_path):
    path, again = tmp_path / "found.json", Played()
    with pytest.raises(KeyboardInterrupt):
        runs.run(compared(Played(stop_at=2)), ["--out", str(path)])
    other = compared(again, arms={"a": {"lr": 3}, "b": {"lr": 2}})
    runs.run(other, ["--out", str(path), "--seeds", "1", "--only", "b"])
    (whole,) = contents(tmp_path)
    assert (keys(whole), again.seen) == ([("b", 0)], [("b", 0)])
    assert whole["command"].endswith("--seeds 1 --only b")
    assert whole["arms"] == {"b": {"lr": 2}}


def test_a_quick_run_is_said_to_be_one(tmp_path):
    path, played = tmp_path / "found.json", Played()
    runs.run(compared(played), ["--out", str(path), "--quick"])
    (whole,) = contents(tmp_path)
    assert (whole["quick"], played.seen) == (True, WHOLE[:2])
    assert whole["rows"][0]["quick"]
    assert (whole["recipe"], whole["command"][-7:]) == ({"steps": 1}, "--quick")


@pytest.mark.parametrize("line", [["--only", "nothing"], ["--seeds", "0"], ["--out", "."]])
def test_bad_arguments_are_refused(line):
    with pytest.raises(Refusal):
        runs.run(compared(Played()), line)
