import torch

from bench import clock


class Steady:
    """A clock on which every call takes the same time; the first takes longer."""

    minimum = 0.02
    patience = 1.0

    def __init__(self, seconds):
        self.seconds, self.totals = seconds, []

    def total(self, call, repetitions):
        self.totals.append(repetitions)
        return repetitions * self.seconds + (10 * self.seconds if len(self.totals) == 1 else 0)


def test_a_sample_of_a_short_call_is_long_enough():
    for seconds in (1e-5, 1e-3, 0.0199):
        steady = Steady(seconds)
        repetitions, lap = clock.calibrate(steady, None)
        assert lap == repetitions * seconds >= steady.minimum
        assert lap < 2 * steady.minimum


def test_a_long_call_is_not_repeated_to_find_that_out():
    steady = Steady(7.0)
    assert clock.calibrate(steady, None)[0] == 1
    assert steady.totals == [1]


def test_a_clock_that_stands_still_is_not_waited_for_forever():
    assert clock.calibrate(Steady(0.0), None)[0] == 10_000


def test_the_cpu_clock_makes_the_calls():
    calls = []
    assert clock.ProcessorClock().total(lambda: calls.append(1), 5) > 0
    assert len(calls) == 5


def test_the_ceilings_count_bytes_both_ways():
    sizes = []

    class OneSecond:
        minimum = 0.02
        patience = 1.0

        def total(self, call, repetitions):
            sizes.append(call())
            return float(repetitions)

    found = clock.ceilings(OneSecond(), torch.device("cpu"), quick=True)
    assert found == {
        "copy_gigabytes_per_second": round(2 * sizes[0].numel() / 1e9, 2),
        "matmul_teraflops": round(2 * 512**3 / 1e12, 4),
        "matmul": "512, float32",
    }


def test_on_cuda_the_cache_is_flushed_before_each_call_outside_the_events(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def elapsed_time(self, end):
            return 3.0  # milliseconds

    class Properties:
        L2_cache_size = 100

    class Flush:
        def zero_(self):
            log.append("flush")

    sizes = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch, "empty", lambda size, **_: sizes.append(size) or Flush())
    timer = clock.CudaClock(torch.device("cuda"))
    assert sizes[0] > Properties.L2_cache_size
    assert timer.total(lambda: log.append("call"), 2) == 0.006
    assert log == ["wait", *["flush", "event", "call", "event"] * 2, "wait"]
