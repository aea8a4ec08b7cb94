import json
import random

import pytest
import torch

from bench import race, report
from bench.arms import Goal, plain


def rows(workshop, case, **options):
    return {
        (row["direction"], row["arm"], row["peer"]): row
        for row in race.run(case, workshop.track(**options))
    }


def test_twice_the_time_is_half_the_speed():
    assert race.ratios([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == (0.5, 0.5, 0.5)


def test_the_ratio_is_the_median_of_the_rounds_not_the_ratio_of_the_medians():
    # A machine that slows down for some rounds slows both arms.
    median, low, high = race.ratios([1, 10, 1, 10, 2], [2, 20, 2, 20, 2])
    assert (median, high) == (2, 2)
    assert low == pytest.approx(1.8)  # a fifth of the way from the first to the last of 1 2 2 2 2
    with pytest.raises(ValueError, match="expected samples in pairs, got 1 and 2"):
        race.ratios([1], [1, 2])


def test_quantiles_lie_between_samples():
    _, low, high = race.ratios([1] * 6, [1, 2, 3, 4, 5, 6])
    assert (low, high) == pytest.approx((2, 5))


def test_every_arm_runs_once_in_each_round_and_the_order_changes():
    log = []
    samples = {name: lambda name=name: log.append(name) or 1.0 for name in "abcd"}
    times = race.interleave(samples, 12, random.Random(0))
    rounds = [tuple(log[i : i + 4]) for i in range(0, 48, 4)]
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len(set(rounds)) > 4
    assert all(len(values) == 12 for values in times.values())


def test_a_slower_arm_has_half_the_ratio_in_the_direction_where_it_is_slower(workshop):
    case = workshop.case(
        [workshop.arm("torch", forward=1, backward=4)],
        [workshop.arm("eager", forward=1, backward=2)],
        directions=("forward", "backward", "both"),
    )
    found = rows(workshop, case)
    assert found["forward", "torch", "eager"]["ratio"] == 1
    row = found["backward", "torch", "eager"]
    assert (row["ratio"], row["low"], row["high"], row["noise"]) == (0.5, 0.5, 0.5, [1, 1])
    assert (row["milliseconds"], row["peer_milliseconds"]) == (4000, 2000)
    assert row["rounds"] == 9
    # The forward belongs to a training step, and is outside the clock of a backward.
    assert found["both", "torch", "eager"]["milliseconds"] == 5000


def test_what_the_peer_does_to_itself_is_noise_and_prints_as_such(workshop):
    rng = random.Random(0)

    def jitter():
        return rng.uniform(0.8, 1.25)

    case = workshop.case(
        [workshop.arm("torch", lambda: 1.03 * jitter()), workshop.arm("reference", 3.0)],
        [workshop.arm("eager", jitter)],
        directions=("forward",),
    )
    found = race.run(case, workshop.track(rounds=25))
    assert found[0]["noise"][0] < 0.97
    same, slower = report.lines(found)
    assert "  ~1 [" in same
    assert "~1" not in slower
    assert " 0.3" in slower


def test_noise_reaches_as_far_to_either_side():
    assert race.noise_band([1, 1, 1], [2, 2, 2]) == (0.5, 2)
    assert race.noise_band([2, 2, 2], [1, 1, 1]) == (0.5, 2)


def test_a_short_case_gets_its_rounds_and_a_long_one_at_least_three(workshop):
    case = workshop.case([workshop.arm("torch")], [workshop.arm("eager")], directions=("forward",))
    assert race.run(case, workshop.track(seconds=15))[0]["rounds"] == 5
    assert race.run(case, workshop.track(seconds=1))[0]["rounds"] == 3


def test_floors_are_judged_by_the_medians_and_by_memory(workshop):
    floors = [
        ({"ratio": 0.5}, True),
        ({"ratio": 0.51}, False),
        ({"ratio": 0.5, "memory_ratio": 1.0}, True),
        ({"ratio": 0.5, "memory_ratio": 0.9}, False),
        ({"copy_fraction": 0.2}, True),
        ({"copy_fraction": 0.3}, False),
        ({"milliseconds": 2000}, True),
        ({"milliseconds": 1999}, False),
    ]
    for floor, met in floors:
        case = workshop.case(
            [workshop.arm("torch", forward=2.0)],
            [workshop.arm("eager", forward=1.0)],
            directions=("forward",),
            goals=(Goal("torch", "forward", "eager", floor),),
            num_bytes={"forward": 50},
        )
        (row,) = race.run(case, workshop.track(copy_bandwidth=100.0))
        assert (row["meets"], row["copy_fraction"]) == (met, 0.25), floor
        assert ("NOT met" in report.lines([row])[0]) == (not met)


def test_a_demand_that_was_not_measured_is_not_judged(workshop):
    case = workshop.case(
        [workshop.arm("torch")],
        [workshop.arm("eager")],
        goals=(Goal("torch", "forward", "eager", {"ratio": 0.5, "memory_ratio": 1.0}),),
    )
    row = rows(workshop, case, memory=lambda *_: None)["forward", "torch", "eager"]
    assert row["memory_ratio"] is None
    assert row["meets"] is None


def test_memory_of_both_steps_stands_in_their_rows(workshop):
    memory = {("torch", "forward"): 2, ("torch", "both"): 3, ("eager", "forward"): 4}
    case = workshop.case([workshop.arm("torch")], [workshop.arm("eager")])
    found = rows(workshop, case, memory=lambda case, arm, step: memory.get((arm.name, step), 6))
    assert found["forward", "torch", "eager"]["memory_ratio"] == 0.5
    assert found["backward", "torch", "eager"]["memory_bytes"] == 3
    assert found["backward", "torch", "eager"]["peer_memory_bytes"] == 6


def test_a_wrong_arm_is_not_timed_and_its_row_says_so(workshop):
    case = workshop.case(
        [workshop.arm("torch", compute=lambda x: x * x + 1e-3)],
        [workshop.arm("eager")],
        directions=("forward",),
        goals=(Goal("torch", "forward", "eager", {"ratio": 0.1}),),
    )
    (row,) = race.run(case, workshop.track())
    assert workshop.calls.count("torch") == 1  # at the gate
    assert (row["ratio"], row["milliseconds"], row["meets"]) == (None, None, False)
    assert row["peer_milliseconds"] == 1000
    (line,) = report.lines([row])
    assert "not timed. torch: wrong output: error 0.001, at most" in line
    assert line.endswith("floor ratio 0.1: NOT met")


@pytest.mark.parametrize("where", ["gate", "memory", "clock"])
def test_a_peer_that_does_not_run_leaves_the_others_in_the_race(workshop, where):
    def memory(case, arm, step):
        if arm.name == "flash" and where == "memory":
            raise RuntimeError("out of memory")
        return 1

    def broken(x):
        if where == "gate" or (where == "clock" and x.numel() == 8):
            raise RuntimeError("no kernel\nstack")
        return x.square()

    case = workshop.case(
        [workshop.arm("torch")],
        [workshop.arm("flash", compute=broken), workshop.arm("eager", forward=3)],
        directions=("forward",),
        goals=(Goal("torch", "forward", "flash", {"ratio": 0.1}),),
        gate_inputs=lambda draw: (torch.randn(4),),
    )
    found = rows(workshop, case, memory=memory)
    assert found["forward", "torch", "eager"]["ratio"] == 3
    row = found["forward", "torch", "flash"]
    assert row["meets"] is None
    said = "out of memory" if where == "memory" else "no kernel"
    assert row["refused"] == {"flash": f"does not run: RuntimeError: {said}"}


def test_an_arm_changes_neither_the_inputs_nor_the_others(workshop):
    def greedy(x):
        out = x.square()
        x.detach().zero_()
        return out

    seen = []
    case = workshop.case(
        [plain("torch", greedy)],
        [workshop.arm("eager", compute=lambda x: seen.append(float(x.abs().sum())) or x * x)],
        directions=("forward",),
    )
    inputs = case.inputs(torch.Generator().manual_seed(0))
    for arm in (*case.arms, *case.peers):
        race.make_call(arm, inputs, "forward")[0]()
    assert seen[0] > 0


def test_a_setting_holds_during_calls_alone_and_the_backend_is_recorded(workshop):
    is_set = []

    class Setting:
        def __enter__(self):
            is_set.append(1)

        def __exit__(self, *_):
            is_set.pop()

    def compute(x):
        assert is_set
        return x.square()

    case = workshop.case(
        [workshop.arm("torch", compute=lambda x: x * x)],
        [workshop.arm("cudnn", compute=compute, around=Setting, backend=lambda x: "CUDNN")],
    )
    for row in race.run(case, workshop.track()):
        assert row["ratio"] == 1, row["refused"]
        assert row["peer_backend"] == "CUDNN"
    assert not is_set


def test_a_scalar_loss_gets_the_gradient_that_training_gives_it(workshop):
    scaled = []

    class Loss(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        def backward(ctx, dloss):
            scaled.append(float(dloss))
            return 2 * ctx.saved_tensors[0] * dloss

    arm = workshop.arm("torch", compute=Loss.apply)
    call, _ = race.make_call(arm, (torch.randn(8),), "both")
    call()
    call, _ = race.make_call(arm, (torch.randn(8),), "backward")
    call()
    call()
    assert scaled == [1, 1, 1]


def committed(folder, name, *entries, quick=False):
    ops = {
        f"script {i}": {
            "complete": complete,
            "rows": [
                {"op": op, "capability": capability, "floor": floor, "meets": met}
                for op, capability, floor, met in entry
            ],
        }
        for i, (complete, entry) in enumerate(entries)
    }
    (folder / name).write_text(json.dumps({"quick": quick, "ops": ops}))


def test_a_kernel_is_backed_only_by_a_file_in_which_all_its_floors_are_met(tmp_path):
    floor = {"ratio": 1.0}
    good = ("norm", [9, 0], floor, True)
    committed(tmp_path, "a.json", (True, [good, ("norm", [9, 0], None, None)]))
    assert race.meets(tmp_path, "norm", (9, 0))
    assert race.meets(tmp_path, "norm", (9, 0), "a.json")
    assert not race.meets(tmp_path, "norm", (8, 0))
    assert not race.meets(tmp_path, "norm", None)
    assert not race.meets(tmp_path, "other", (9, 0))
    assert not race.meets(tmp_path, "norm", (9, 0), "missing.json")
    (tmp_path / "0.json").write_text(json.dumps({"quick": False, "rows": []}))  # a comparison
    assert race.meets(tmp_path, "norm", (9, 0))
    for number, entry in enumerate(
        [
            (True, [good, ("norm", [9, 0], floor, False)]),
            (True, [good, ("norm", [9, 0], floor, None)]),
            (True, [("norm", [9, 0], None, None)]),
            (False, [good]),
        ]
    ):
        committed(tmp_path, f"bad{number}.json", entry)
        assert not race.meets(tmp_path, "norm", (9, 0), f"bad{number}.json")
    committed(tmp_path, "quick.json", (True, [good]), quick=True)
    assert not race.meets(tmp_path, "norm", (9, 0), "quick.json")
