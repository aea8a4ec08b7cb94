"""Skip what needs the sandbox where there is none, or fail if it must be there."""

import functools
import os

import pytest

from tools.grading import job


@functools.cache
def fault() -> str:
    return job.available()


def need_sandbox() -> None:
    if not fault():
        return
    if os.environ.get("AIGC_REQUIRE_SANDBOX") == "1":
        pytest.fail(f"{fault()}, and AIGC_REQUIRE_SANDBOX=1")
    pytest.skip(fault())
