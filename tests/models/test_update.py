"""The optimizer step: its schedule by hand, clipping, steps that are not finite, and a state that goes round."""

import copy
import math

import pytest
import torch

from prefloop.errors import TrainingError
from prefloop.models.update import (
    MAX_BAD_STEPS,
    OptimizerSettings,
    Schedule,
    Update,
    load_parameter_state,
    parameter_state,
    require_finite,
    seed_torch,
)


def _parameters() -> dict[str, torch.nn.Parameter]:
    return {
        "matrix": torch.nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 4.0]])),
        "vector": torch.nn.Parameter(torch.tensor([0.5, -0.5])),
    }


def _loss(parameters: dict[str, torch.nn.Parameter], scale: float = 1.0) -> torch.Tensor:
    return scale * (parameters["matrix"].square().sum() + parameters["vector"].sum())


def _values(parameters: dict[str, torch.nn.Parameter]) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in parameters.values()])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 2 steps of warm-up, then 4 steps from the peak 1.0 down to the share 0.2.
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]),
        ("cosine", [0.5, 1.0, 1.0, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6, 0.2 + 0.8 * (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_the_schedule_by_hand(schedule: Schedule, expected: list[float]) -> None:
    settings = OptimizerSettings(learning_rate=1.0, schedule=schedule, warmup_steps=2, final_learning_rate_share=0.2)
    parameters = _parameters()
    update = Update(parameters, settings, num_steps=6)
    rates = []
    for _ in range(6):
        rates.append(update.learning_rate())
        update.backward(_loss(parameters))
        update.step()
        assert update.optimizer.param_groups[0]["lr"] == rates[-1], "the rate announced is the rate used"
    assert rates == pytest.approx(expected)
    assert update.learning_rate() == pytest.approx(1.0 if schedule == "constant" else 0.2)


def test_the_first_step_of_adam_by_hand() -> None:
    """At the first step both moments are the gradient's, so every weight moves by the learning rate."""
    parameters = _parameters()
    before = _values(parameters)
    update = Update(parameters, OptimizerSettings(learning_rate=0.01, schedule="constant", weight_decay=0.0), 10)
    update.backward(_loss(parameters))
    update.step()
    gradient_signs = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0, 1.0])
    assert torch.allclose(_values(parameters), before - 0.01 * gradient_signs, atol=1e-6)


def test_matrices_decay_and_vectors_do_not() -> None:
    parameters = _parameters()
    before = {name: value.detach().clone() for name, value in parameters.items()}
    settings = OptimizerSettings(learning_rate=0.1, schedule="constant", weight_decay=0.5)
    update = Update(parameters, settings, num_steps=10)
    update.backward(0.0 * _loss(parameters))
    update.step()
    assert torch.allclose(parameters["matrix"], before["matrix"] * (1 - 0.1 * 0.5))
    assert torch.equal(parameters["vector"], before["vector"])


def test_the_norm_returned_is_the_one_before_clipping_and_clipping_scales() -> None:
    parameters = {"vector": torch.nn.Parameter(torch.zeros(2))}
    update = Update(parameters, OptimizerSettings(max_gradient_norm=1.0), num_steps=10)
    update.backward((parameters["vector"] * torch.tensor([3.0, 4.0])).sum())
    seen: list[torch.Tensor] = []
    update.optimizer.register_step_pre_hook(lambda *_: seen.append(parameters["vector"].grad.clone()))  # type: ignore
    assert update.step() == pytest.approx(5.0)
    assert torch.allclose(seen[0], torch.tensor([0.6, 0.8]), atol=1e-5)
    assert parameters["vector"].grad is None, "the next step starts from nothing"


def test_two_backward_passes_add_up() -> None:
    norms = []
    for parts in ((1.0,), (0.25, 0.75)):
        parameters = _parameters()
        update = Update(parameters, OptimizerSettings(), num_steps=10)
        for part in parts:
            update.backward(_loss(parameters, part))
        norms.append(update.step())
    assert norms[0] == pytest.approx(norms[1])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_leaves_the_weights_alone_and_the_third_raises(poison: float) -> None:
    parameters = _parameters()
    update = Update(parameters, OptimizerSettings(), num_steps=20)
    update.backward(_loss(parameters))
    update.step()
    before, moments = _values(parameters), copy.deepcopy(update.state()["moments"])
    for _ in range(MAX_BAD_STEPS - 1):
        update.backward(_loss(parameters, poison))
        assert not math.isfinite(update.step())
    assert torch.equal(_values(parameters), before)
    for name, held in update.state()["moments"].items():
        assert all(torch.equal(held[key], moments[name][key]) for key in held), "the averages are untouched too"
    update.backward(_loss(parameters))
    assert math.isfinite(update.step())
    assert (update.num_skipped, update.num_bad_in_a_row) == (MAX_BAD_STEPS - 1, 0)
    for _ in range(MAX_BAD_STEPS - 1):
        update.backward(_loss(parameters, poison))
        update.step()
    update.backward(_loss(parameters, poison))
    with pytest.raises(TrainingError, match="not finite 3 steps in a row"):
        update.step()


def test_the_state_goes_round_to_the_last_bit() -> None:
    settings = OptimizerSettings(learning_rate=0.05, warmup_steps=2, weight_decay=0.1, schedule="cosine")
    straight = _parameters()
    update = Update(straight, settings, num_steps=8)
    for _ in range(4):
        update.backward(_loss(straight))
        update.step()
    saved, weights = copy.deepcopy(update.state()), parameter_state(straight)
    resumed = _parameters()
    again = Update(resumed, settings, num_steps=8)
    load_parameter_state(resumed, weights)
    again.load_state(saved)
    for _ in range(4):
        for parameters, one in ((straight, update), (resumed, again)):
            one.backward(_loss(parameters))
            one.step()
    assert torch.equal(_values(straight), _values(resumed))
    assert torch.equal(saved["moments"]["matrix"]["step"], torch.tensor(4.0)), "stepping leaves the saved state alone"


def test_a_parameter_state_is_a_copy_and_every_name_must_be_there() -> None:
    parameters = _parameters()
    held = parameter_state(parameters)
    with torch.no_grad():
        parameters["vector"].add_(1.0)
    assert torch.equal(held["vector"], torch.tensor([0.5, -0.5]))
    with pytest.raises(KeyError, match="vector"):
        load_parameter_state(parameters, {"matrix": held["matrix"]})


def test_a_number_that_is_not_finite_is_named() -> None:
    assert require_finite(1.5, "the loss") == 1.5
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(TrainingError, match=f"the loss is {bad}"):
            require_finite(bad, "the loss")


def test_a_seed_for_every_step_draws_what_torch_s_own_would() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    seed_torch(5)
    assert torch.equal(torch.rand(3), wanted)
