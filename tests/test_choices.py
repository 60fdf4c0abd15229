"""The names among which users choose are those behind which something stands."""

import inspect

import pytest
import torch
from helpers import cpu, scheduler
from torch import nn

from common import choices
from common.errors import UserError
from models import samplers
from models import scheduler as schedules
from models.diffusion import timestep_density
from training.optimizer import LrSchedule, Optimizer
from training.runtime import DTYPES


def test_samplers_are_those_of_the_models_with_their_settings():
    """A setting is what a sampler takes beside what all take."""
    assert list(choices.SAMPLERS) == list(samplers.SAMPLERS)
    parameters = {
        name: set(inspect.signature(s).parameters) for name, s in samplers.SAMPLERS.items()
    }
    shared = set.intersection(*parameters.values())
    for name, choice in choices.SAMPLERS.items():
        assert set(choice.settings) == parameters[name] - shared


def test_schedules_and_predictions_are_those_of_the_scheduler():
    assert tuple(schedules.SCHEDULES) == choices.SCHEDULES
    assert choices.PREDICTIONS == schedules.PREDICTIONS  # the same object


def test_precisions_are_those_of_the_runtime():
    assert tuple(DTYPES) == choices.PRECISIONS


def test_densities_of_t_are_those_of_the_objective():
    """Each is one, none is another, and the refusal of a further one names them."""
    densities = [timestep_density(scheduler(), name) for name in choices.T_DENSITIES]
    assert not torch.allclose(*densities)
    with pytest.raises(UserError, match=f"density {' or '.join(choices.T_DENSITIES)}, not other"):
        timestep_density(scheduler(), "other")


def test_optimizers_are_those_of_the_training():
    model = nn.Sequential(nn.Linear(8, 8))
    made = {name: set(Optimizer(model, name, 1e-3, cpu()).optimizers)
            for name in choices.OPTIMIZERS}  # fmt: skip
    assert made == {"muon": {"adamw", "muon"}, "adamw": {"adamw"}}


def test_schedules_of_the_rate_are_those_of_the_training():
    """Each is one, and none is another."""
    rates = [[LrSchedule.whole(name, 100).factor(step) for step in range(100)]
             for name in choices.LR_SCHEDULES]  # fmt: skip
    assert len(rates) == len(set(map(tuple, rates))) == 2
