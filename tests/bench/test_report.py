import json
from pathlib import Path

import pytest
import torch

from bench import report

HEAD = {
    "device": "NVIDIA H100 80GB HBM3",
    "capability": [9, 0],
    "processor": "A processor",
    "threads": 2,
    "quick": False,
    "versions": {"torch": "2.13.0"},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "TRIALS", tmp_path / "trials")
    return tmp_path / "results"


def entry(complete=True, rows=()):
    return {"complete": complete, "rows": list(rows)}


def read(results):
    return json.loads(results.path.read_text(encoding="utf-8"))


def test_a_device_becomes_part_of_a_file_name():
    assert report.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert report.slug("Intel(R) Xeon(R) CPU @ 2.20GHz") == "intel-xeon-cpu-2-20ghz"


def test_the_setting_is_told_and_fits_into_json():
    head = report.setting(torch.device("cpu"), quick=True)
    assert json.loads(json.dumps(head)) == head
    assert set(head) == set(report.SETTING)
    assert head["capability"] is None
    assert head["versions"]["torch"].startswith(torch.__version__[:4])
    assert head["device"] == head["processor"] != ""


def test_the_file_is_named_by_day_and_device_and_says_what_is_missing(folder):
    results = report.Results(HEAD, ["norm", "attention"], keep=True)
    assert results.path.parent == folder
    assert results.path.name == f"{results.content['date']}-nvidia-h100-80gb-hbm3.json"
    assert not results.path.exists()
    results.put("norm", entry())
    assert read(results)["missing"] == ["attention"]
    results.put("attention", entry())
    content = read(results)
    assert content["missing"] == []
    assert list(content["ops"]) == ["norm", "attention"]
    assert content["device"] == HEAD["device"]


def test_only_a_full_run_that_is_to_be_kept_lies_among_the_committed_results(folder):
    quick, trials = {**HEAD, "quick": True}, folder.with_name("trials")
    assert report.Results(quick, [], keep=True).path.parent == trials
    assert report.Results(HEAD, []).path.parent == trials
    assert report.Results(HEAD, [], keep=True).path.parent == folder


def test_a_second_run_replaces_its_ops_and_keeps_the_others(folder):
    first = report.Results(HEAD, ["norm", "attention"], keep=True)
    first.put("norm", entry(rows=[1]))
    first.put("attention", entry(rows=[2]))
    second = report.Results(HEAD, ["norm"], keep=True)
    second.put("norm", entry(rows=[3]))
    assert second.path == first.path
    assert read(second)["ops"] == {"norm": entry(rows=[3]), "attention": entry(rows=[2])}


def test_other_versions_get_a_file_with_a_number(folder):
    report.Results(HEAD, ["norm"], keep=True).put("norm", entry())
    newer = {**HEAD, "versions": {"torch": "2.14.0"}}
    second = report.Results(newer, ["norm"], keep=True)
    assert second.path.stem.endswith("hbm3-2")
    second.put("norm", entry())
    third = report.Results({**HEAD, "threads": 8}, ["norm"], keep=True)
    assert third.path.stem.endswith("hbm3-3")
    assert report.Results(newer, ["norm"], keep=True).path == second.path


def test_a_file_of_ones_own_choice(folder, tmp_path):
    results = report.Results(HEAD, [], tmp_path / "mine.json")
    results.put("norm", entry())
    assert (tmp_path / "mine.json").exists()
    assert not folder.exists()


def test_an_unfinished_op_is_kept_but_replaces_no_finished_one(folder):
    results = report.Results(HEAD, ["norm"], keep=True)
    results.put("norm", entry(complete=False, rows=[1]))
    assert read(results)["ops"]["norm"]["rows"] == [1]
    assert read(results)["missing"] == ["norm"]
    results.put("norm", entry(rows=[1, 2]))
    results.put("norm", entry(complete=False, rows=[3]))
    assert read(results)["ops"]["norm"]["rows"] == [1, 2]


def test_a_write_that_fails_leaves_the_old_file_whole(folder, monkeypatch):
    results = report.Results(HEAD, ["norm", "attention"], keep=True)
    results.put("norm", entry())
    before = results.path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.put("attention", entry(rows=[float("nan")]))

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("tools.os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        results.put("attention", entry())
    assert results.path.read_bytes() == before
    assert [path.name for path in Path(folder).iterdir()] == [results.path.name]
