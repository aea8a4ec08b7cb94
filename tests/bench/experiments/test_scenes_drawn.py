"""Scenes from captions, with few of them and for few steps."""

import json
import re
from dataclasses import asdict, replace

import pytest
import torch
from comparisons import fits
from torch import nn

from aigc_lib import checkpoint
from aigc_lib.data.scenes import render
from aigc_lib.data.scenes import scenes as draw_scenes
from bench import report
from bench.experiments import painter as painters
from bench.experiments import scenes, studio
from tools import Refusal

FILES = sorted(report.RESULTS.glob("*-scenes*.json"))
NUMBER = (int, float)
HEAD = {
    **dict.fromkeys(("date", "device", "processor", "command", "autoencoder"), str),
    **dict.fromkeys(("versions", "arms"), dict),
    **dict.fromkeys(("seeds", "rows"), list),
    **dict.fromkeys(("quick", "complete"), bool),
    "threads": int,
    "capability": type(None),
    "wait_policy": (str, type(None)),
}
ROW = {
    "arm": str,
    **dict.fromkeys(("seed", "steps"), int),
    **dict.fromkeys(("wall_seconds", "cpu_seconds", "prepare_seconds", "loss"), NUMBER),
    **dict.fromkeys(studio.MEASURES, dict),
}
TINY = painters.Recipe(
    width=16, layers=1, heads=2, batch=4, steps=3, images=16, asked=12, num_steps=2, scale=1.0
)


def check_row(row):
    fits(row, ROW)
    assert set(row["captions"]) == {f"{a}, {b}" for a in ("held out", "seen") for b in ("en", "zh")}
    assert list(row["guidance"]) == [str(scale) for scale in studio.SCALES]
    assert row["inpainting"]["outside"] == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_comparison_is_whole_and_named_after_its_device_and_day(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    fits(content, HEAD)
    name = re.escape(f"{content['date']}-{report.slug(content['device'])}")
    assert re.fullmatch(rf"{name}-scenes(-\d+)?\.json", path.name)
    assert content["complete"]
    assert not content["quick"]
    found = [(row["seed"], row["arm"]) for row in content["rows"]]
    assert found == [(seed, arm) for seed in content["seeds"] for arm in content["arms"]]
    for row in content["rows"]:
        check_row(row)
        assert row["captions"]["held out, en"]["all"] > 0.8


def test_the_autoencoder_that_all_start_from_is_small_and_says_where_it_comes_from():
    assert painters.WEIGHTS.stat().st_size < 2e6
    record = checkpoint.load(painters.WEIGHTS)["record"]
    assert {"command", "date", "device", "seed", "torch"} <= set(record)
    fresh = draw_scenes(200, torch.Generator().manual_seed(7), held_out=True)
    look = studio.Studio(painters.new_painter(TINY, 0), TINY, 0)
    latent = look.latent(fresh.images)
    assert latent.std().item() == pytest.approx(0.95, abs=0.1)
    assert studio.shares(fresh.facts, look.image(latent))["all"] > 0.99


def test_a_seed_fixes_a_row_but_for_its_seconds(tmp_path, monkeypatch):
    for name, few in (("SCALES", (0.0, 2.0)), ("COUNTS", (1, 2)), ("STRENGTHS", (0.5,))):
        monkeypatch.setattr(studio, name, few)
    head = dict.fromkeys(("command", "date", "device", "versions", "threads"))
    keep = scenes.keeper(tmp_path / "x", head | {"arms": {"the minute": asdict(TINY)}})
    rows = [scenes.play("the minute", TINY, seed, keep) for seed in (1, 1, 2)]
    for row in rows:
        check_row(row)
        for key in ("wall_seconds", "cpu_seconds", "prepare_seconds"):
            row.pop(key)
    assert rows[0] == rows[1]
    assert rows[0]["loss"] != rows[2]["loss"]
    kept = checkpoint.load(tmp_path / "x")
    assert kept["record"]["seed"] == 2
    painters.Painter(painters.Recipe(**kept["recipe"]), (8, 4, 4)).load_state_dict(kept["weights"])


class Knows(nn.Module):
    """A painter for whom a caption is the facts themselves, and a negative one not to be drawn."""

    def __init__(self, look):
        super().__init__()
        self.net, self.look, self.seen = self, look, []

    def encoder(self, tokens):
        return tokens, tokens[:, 0, 0] >= 0

    def forward(self, x, condition, text, text_mask):
        draws = torch.Generator().manual_seed(0)
        x0 = self.look.latent(render(text.clamp(min=0).where(text[:, :, :1] >= 0, -1), draws))
        t = torch.sigmoid(-2 * condition)[:, None, None, None]
        return (x - x0) / t


@pytest.fixture
def look(monkeypatch):
    monkeypatch.setattr(studio, "captions", lambda facts, *_: facts.tolist())
    monkeypatch.setattr(
        studio,
        "tokenise",
        lambda told: torch.tensor([[[-1] * 4] * 2 if type(x) is str else x for x in told]),
    )
    monkeypatch.setattr(studio, "SCALES", (1.0,))
    found = studio.Studio(None, replace(TINY, asked=60), 0)
    found.painter = Knows(found)
    return found


def test_the_truth_is_right_in_all_that_is_asked(look):
    for found in studio.obeyed(look).values():
        assert found["all"] == 1
    assert set(studio.few_steps(look).values()) == {1}
    (found,) = studio.guidance(look).values()
    assert found["all"] == 1
    assert 0.7 < found["variety"] < 1.4
    found = studio.inpainted(look)
    assert (found["all"], found["outside"]) == (1, 0)
    rows = studio.redrawn(look)
    assert rows["1.0"]["all"] == 1
    assert rows["1.0"]["moved"] == pytest.approx(rows["fresh"]["moved"], rel=0.3)
    assert studio.avoided(look)["with"]["all"] == 1


def test_a_wrong_painter_is_found_out(look, monkeypatch):
    paint = look.paint
    monkeypatch.setattr(look, "paint", lambda *given, **more: paint(*given, **more).flip(1))
    assert all(found["colour"] < 0.5 for found in studio.obeyed(look).values())
    assert studio.inpainted(look)["all"] < 0.8


def test_variety_counts_right_images_alone():
    facts = draw_scenes(10, torch.Generator().manual_seed(0)).facts.repeat_interleave(4, 0)
    images = render(facts, torch.Generator().manual_seed(1))
    whole, broken = studio.variance(facts, images), images.clone()
    broken[::4] = 0
    assert studio.variance(facts, broken) == pytest.approx(whole, rel=0.3)
    assert studio.variance(facts, images[::4].repeat_interleave(4, 0)) < 1e-12
    by_hand = images.view(10, 4, -1).var(1).mean().item()
    assert whole == pytest.approx(by_hand, rel=1e-4)


def test_what_is_unsaid_is_of_both_objects_and_seldom(monkeypatch):
    told = []
    monkeypatch.setattr(painters, "captions", lambda facts, *_: told.append(facts) or [""] * 400)
    recipe = replace(TINY, images=400, phrasings=2, unsaid=0.25)
    painters.data(recipe, 3)
    for facts in told:
        pair = facts[(facts[:, 1, 3] >= 0)]
        assert torch.equal(pair[:, 0, :3] < 0, pair[:, 1, :3] < 0)
        assert (pair[:, 0, :3] < 0).float().mean().item() == pytest.approx(0.25, abs=0.08)
        assert (facts[:, 0, 3] >= 0).all()


def test_bad_arguments_are_refused():
    for line in (["--only", "nothing"], ["--seeds", "0"], ["--out", "."], ["--save", "."]):
        with pytest.raises(Refusal):
            scenes._arguments(line)
