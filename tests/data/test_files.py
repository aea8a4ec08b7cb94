import os

import pytest

from aigc_lib.data import files


def test_a_file_and_its_folder_are_made_and_a_file_that_is_there_is_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for data in (b"first", b"", b"\0\xff"):
        files.put(path, data)
        assert path.read_bytes() == data
    assert os.listdir(path.parent) == ["file"]


def test_the_bytes_are_on_the_disk_before_they_get_their_name(tmp_path, monkeypatch):
    steps, sync, replace = [], os.fsync, os.replace

    def recording_sync(handle):
        sync(handle)
        steps.append(("sync", os.fstat(handle).st_size))

    def recording_replace(source, target):
        assert os.path.dirname(source) == str(tmp_path)  # another disk could not replace at once
        steps.append(("replace", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recording_sync)
    monkeypatch.setattr(os, "replace", recording_replace)
    files.put(tmp_path / "file", b"12345")
    assert steps == [("sync", 5), ("replace", "file")]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_interrupts_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    def interrupt(*_):
        raise error

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(type(error)):
        files.put(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"
