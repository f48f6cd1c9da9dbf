"""What a study searches: from the recipe's section `space` to Optuna's suggestions and back to a
configuration.

Parameters carry the configuration's own dotted keys. They are conditional: whether there is a prior
is asked for before its weight, for no interval's samples are exactly 0; without SuDe neither its
truncation point nor its teacher matters, and the teacher `current` is asked for beside a prior
only, which anchors its class direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dreamfleet.config import Interval, RunConfig
from dreamfleet.errors import ConfigError

Params = Mapping[str, Any]
DEFAULT_SUDE_WEIGHT = 0.4  # the authors' own default; the first trials stand around it
FIRST_FACTORS = (0.0, 0.5, 1.0, 2.0)
WEIGHT, WITH_PRIOR, PRIOR, POINT, TEACHER = (
    "sude.weight", "prior.with_prior_preservation", "prior.weight", "sude.truncation_point",
    "sude.teacher",
)  # fmt: skip
RATE, RANK, METHOD = "train.learning_rate", "train.rank", "method"
RATE_FACTOR = 3.0
MANY_TRIALS = 100_000  # the most that may be asked for


class Suggests(Protocol):
    """An Optuna trial, as far as it is used here."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Dimension:
    """One parameter: choices, or numbers from `low` to `high`."""

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def fixed(self) -> bool:
        return len(self.choices) == 1

    def suggest(self, trial: Suggests, name: str) -> Any:
        if self.fixed:
            return self.choices[0]
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def text(self) -> str:
        """For people."""
        if self.choices:
            return ", ".join("none" if c is None else f"{c}" for c in self.choices)
        return f"{self.low:.3g} to {self.high:.3g}{' (log)' if self.log else ''}"


def dimensions(config: RunConfig) -> dict[str, Dimension]:
    """Every parameter of a resolved recipe's space; the recipe's own values belong to it.

    Raises:
        ConfigError: the recipe has no constant learning rate: a run's checkpoints would then not
            stand for shorter runs. Or the space's truncation points are an interval, but the
            recipe has none; or w_s, which is 0 in the host, has a logarithmic one.
    """
    train, space = config.train, config.space
    if train.lr_scheduler not in ("constant", "constant_with_warmup"):
        raise ConfigError(
            f"train.lr_scheduler = {train.lr_scheduler!r}: a sweep reads shorter trainings off the "
            "checkpoints of longer ones; expected constant"
        )
    if isinstance(space.truncation_point, Interval) and config.sude.truncation_point is None:
        raise ConfigError(
            "space.truncation_point: an interval does not hold the recipe's own, which is none; "
            "expected a list with null, or a number for sude.truncation_point"
        )
    if isinstance(space.sude_weight, Interval) and space.sude_weight.log:
        raise ConfigError(
            "space.sude_weight: w_s = 0, the host's, has no place on a logarithmic scale; expected "
            "an interval without log, or a list"
        )
    rate, rank = float(train.learning_rate or 0), int(train.rank or 0)
    own = recipe_params(config)
    rates = space.learning_rate or Interval(
        low=rate / RATE_FACTOR, high=rate * RATE_FACTOR, log=True
    )
    found = {
        METHOD: _dimension(list(space.method), config.method),
        WEIGHT: _dimension(space.sude_weight, own[WEIGHT], *first_weights(config)),
        **_prior(config, own[PRIOR]),
        POINT: _dimension(space.truncation_point, config.sude.truncation_point),
        TEACHER: _dimension(list(space.teacher), config.sude.teacher),
        RATE: _dimension(rates, rate),
    }
    if train.mode == "lora":
        ranks = space.rank or sorted({max(1, rank // 2), rank, 2 * rank})
        found[RANK] = _dimension(list(ranks), rank)
    return found


def _prior(config: RunConfig, own: float) -> dict[str, Dimension]:
    """Of the prior: its weight, and before it whether there is one, where both may be."""
    wanted = config.space.prior_weight if searches_prior(config) else [own]
    if not isinstance(wanted, Interval):
        return {PRIOR: _dimension(wanted, own)}
    weight = {PRIOR: _dimension(wanted, *([own] if own > 0 else []))}
    if wanted.low > 0 and own > 0:
        return weight
    return {WITH_PRIOR: Dimension(choices=(False, True)), **weight}


def _dimension(wanted: Interval | Sequence[Any], *own: Any) -> Dimension:
    if isinstance(wanted, Interval):
        numbers = [value for value in own if value is not None]
        low, high = min([wanted.low, *numbers]), max([wanted.high, *numbers])
        return Dimension(low=low, high=high, log=wanted.log and low > 0)
    if len(wanted) == 1:  # fixed by the user's own wish, whatever the recipe says
        return Dimension(choices=tuple(wanted))
    extra = [value for value in own if value not in wanted]
    return Dimension(choices=(*wanted, *dict.fromkeys(extra)))


def suggest(
    trial: Suggests, space: Mapping[str, Dimension], *, host: bool = False
) -> dict[str, Any]:
    """One setting; what does not matter in it is not asked for. The host's w_s is 0, also where the
    space fixes another.
    """
    if WITH_PRIOR in space and not space[WITH_PRIOR].suggest(trial, WITH_PRIOR):
        space = {**space, PRIOR: Dimension(choices=(0.0,))}
    names = [METHOD, WEIGHT, PRIOR, RATE, *([RANK] if RANK in space else [])]
    params = {name: space[name].suggest(trial, name) for name in names}
    params |= {WEIGHT: 0.0} if host else {}
    if params[WEIGHT] > 0:
        params[POINT] = space[POINT].suggest(trial, POINT)
        if params[PRIOR] > 0 or space[TEACHER].fixed:
            params[TEACHER] = space[TEACHER].suggest(trial, TEACHER)
    return params


def recipe_params(config: RunConfig) -> dict[str, Any]:
    """The recipe as a setting; lambda is 0 without prior preservation."""
    prior = config.prior
    params: dict[str, Any] = {
        METHOD: config.method,
        WEIGHT: config.sude.weight,
        PRIOR: prior.weight if prior.with_prior_preservation else 0.0,
        RATE: config.train.learning_rate,
        POINT: config.sude.truncation_point,
        TEACHER: config.sude.teacher,
    }
    return params | ({RANK: config.train.rank} if config.train.mode == "lora" else {})


def first_weights(config: RunConfig) -> list[float]:
    """w_s of the first trials: 0, half, once and twice the recipe's, or the default's; 0 and the
    one that the space fixes.
    """
    default = config.sude.weight or DEFAULT_SUDE_WEIGHT
    fixed = config.space.sude_weight
    if isinstance(fixed, list) and len(fixed) == 1:
        return list(dict.fromkeys([0.0, float(fixed[0])]))
    return [factor * default for factor in FIRST_FACTORS]


def first_settings(config: RunConfig) -> list[dict[str, Any]]:
    """The trials that every study begins with; all but w_s is the recipe's. The first is the
    host. They say what a study with more trials would search, too: it may go on as one.
    """
    space = dimensions(endless(config))
    found = []
    for weight in first_weights(config):
        params = {**recipe_params(config), WEIGHT: weight}
        if weight == 0:
            params.pop(POINT), params.pop(TEACHER)
        elif params[PRIOR] == 0 and not space[TEACHER].fixed:
            params.pop(TEACHER)
        if WITH_PRIOR in space:
            params[WITH_PRIOR] = params[PRIOR] > 0
            if not params[WITH_PRIOR]:
                params.pop(PRIOR)
        found.append({name: value for name, value in params.items() if not space[name].fixed})
    return found


def applied(config: RunConfig, params: Params, *, seed: int | None = None) -> RunConfig:
    """A trial's configuration: the recipe with `params` laid over it.

    The teacher is the frozen base where none is named. LoRA alpha keeps its ratio to the rank.
    """
    train = config.train
    rank = params.get(RANK, train.rank)
    alpha = train.lora_alpha
    if rank and train.rank and alpha is not None:
        alpha = alpha * rank / train.rank
    weight = float(params.get(PRIOR, 0.0))
    new_train = {
        "learning_rate": params.get(RATE, train.learning_rate),
        "rank": rank,
        "lora_alpha": alpha,
        "seed": train.seed if seed is None else seed,
    }
    sude = {
        "weight": float(params[WEIGHT]),
        "truncation_point": params.get(POINT, config.sude.truncation_point),
        "teacher": params.get(TEACHER, "pretrained"),
        "preset": None,
    }
    prior: dict[str, Any] = {"with_prior_preservation": weight > 0}
    prior |= {"weight": weight} if weight > 0 else {}
    return config.model_copy(
        update={
            "method": params.get(METHOD, config.method),
            "train": train.model_copy(update=new_train),
            "sude": config.sude.model_copy(update=sude),
            "prior": config.prior.model_copy(update=prior),
        }
    )


def searches_prior(config: RunConfig) -> bool:
    """Whether any trial needs a prior set. The first ones, which may be all, have the recipe's,
    unless the space fixes another.
    """
    wanted = config.space.prior_weight
    if config.prior.with_prior_preservation:
        return True
    if isinstance(wanted, list) and len(wanted) == 1:
        return wanted[0] > 0
    largest = wanted.high if isinstance(wanted, Interval) else max(wanted)
    return largest > 0 and config.tune.num_samples > len(first_weights(config))


def endless(config: RunConfig) -> RunConfig:
    """The recipe of a sweep that may go on with more trials: what all of its space needs."""
    return config.model_copy(
        update={"tune": config.tune.model_copy(update={"num_samples": MANY_TRIALS})}
    )
