"""What gpu.yaml's alarms and policies would do, played in Python: nothing of them is written here, all is read from it.

Sources: CloudWatch user guide, "Evaluating an alarm" and "Using metric math" (``FILL``: ``REPEAT``); Application Auto
Scaling user guide, "How step scaling works" (steps, cooldown: a larger step out goes through, steps in are held up).
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType

    from .template import Template

STEP = 15
"""Seconds of the simulation's clock."""
MINUTE = 60
DAY = 24 * 3600
COLD_START = 7 * MINUTE
"""From the order of a host to its first picture: the instance, the image, the model."""
LAG = (1 * MINUTE, 3 * MINUTE)
"""How late a metric's value of a minute is there for an alarm."""
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanThreshold": lambda value, threshold: value > threshold,
    "GreaterThanOrEqualToThreshold": lambda value, threshold: value >= threshold,
    "LessThanOrEqualToThreshold": lambda value, threshold: value <= threshold,
    "LessThanThreshold": lambda value, threshold: value < threshold,
}
STATISTICS: dict[str, Callable[[list[int]], float]] = {"Maximum": max, "Minimum": min}
AGGREGATES: dict[str, Callable[[list[float]], float]] = {"Maximum": max, "Minimum": min}
WORDS = {"FILL": lambda value, _: value, "REPEAT": None}
"""Of an alarm's expression. What is missing has been filled when it is evaluated."""
BACKLOG = "FILL(waiting + FILL(held, 0), REPEAT)"
MESSAGES = {"ApproximateNumberOfMessagesVisible": "visible", "ApproximateNumberOfMessagesNotVisible": "held"}


@dataclass(frozen=True)
class Rule:
    """An alarm with the step policy that is its action."""

    name: str
    metrics: dict[str, tuple[str, str]]
    """By id: the queue's number, and the statistic of a minute."""
    expression: CodeType
    periods: int
    needed: int
    breaches: Callable[[float], bool]
    threshold: float
    steps: tuple[tuple[float, float, int], ...]
    """From, to, hosts."""
    cooldown: int
    aggregate: Callable[[list[float]], float]

    def value(self, counts: dict[str, float]) -> float:
        """The expression for one period, in which missing values have been filled."""
        words: dict[str, Any] = {**WORDS, **counts}
        return float(eval(self.expression, {"__builtins__": {}}, words))

    def wants(self, value: float) -> int | None:
        """The hosts that the policy's steps ask for."""
        beyond = value - self.threshold
        for least, most, to in self.steps:
            # Above the threshold a step begins at its lower bound, below it ends at its upper one.
            if least <= beyond < most if most > 0 else least < beyond <= most:
                return to
        return None


@dataclass(frozen=True)
class Rules:
    """All that decides about the number of hosts."""

    every: tuple[Rule, ...]
    least: int
    most: int
    target: int
    idle: int
    """Seconds that a host outlives its worker."""


def rules(template: Template) -> Rules:
    """Of gpu.yaml with its parameters. Raises ValueError for whatever this simulation does not know."""
    there = template.resources()
    found = []
    for name, resource in there.items():
        if resource["Type"] == "AWS::CloudWatch::Alarm":
            (action,) = resource["Properties"]["AlarmActions"]
            found.append(_rule(name, resource["Properties"], there[action.strip("<>")]["Properties"]))
    policies = [one for one in there.values() if one["Type"] == "AWS::ApplicationAutoScaling::ScalingPolicy"]
    if len(policies) != len(found):
        raise ValueError("a policy without an alarm here")
    (scaled,) = (one["Properties"] for one in there.values() if "ScalableDimension" in one["Properties"])
    (capacity,) = (one for one in there.values() if one["Type"] == "AWS::ECS::CapacityProvider")
    host = capacity["Properties"]["ManagedInstancesProvider"]["InfrastructureOptimization"]
    return Rules(
        tuple(found),
        int(scaled["MinCapacity"]),
        int(scaled["MaxCapacity"]),
        int(template.parameter("BacklogPerWorker")),
        int(host["ScaleInAfter"]),
    )


def _rule(name: str, alarm: dict[str, Any], policy: dict[str, Any]) -> Rule:
    step = policy["StepScalingPolicyConfiguration"]
    if (policy["PolicyType"], step["AdjustmentType"]) != ("StepScaling", "ExactCapacity"):
        raise ValueError(f"{name}: neither another policy nor another adjustment is simulated")
    metrics, expression = {}, ""
    for one in alarm["Metrics"]:
        if "Expression" in one:
            expression = one["Expression"]
            continue
        statistic = one["MetricStat"]
        if statistic["Period"] != MINUTE or statistic["Metric"]["Namespace"] != "AWS/SQS":
            raise ValueError(f"{name}: {one}: only SQS by the minute is simulated")
        metrics[one["Id"]] = (MESSAGES[statistic["Metric"]["MetricName"]], statistic["Stat"])
    if BACKLOG not in expression or metrics.keys() != {"waiting", "held"}:
        raise ValueError(
            f"{name}: {expression}: what is late has to repeat what was before, and what is not held to be 0"
        )
    threshold = float(alarm["Threshold"])
    steps = tuple(
        (
            float(one.get("MetricIntervalLowerBound", "-inf")),
            float(one.get("MetricIntervalUpperBound", "inf")),
            int(one["ScalingAdjustment"]),
        )
        for one in step["StepAdjustments"]
    )
    compare = COMPARISONS[alarm["ComparisonOperator"]]
    return Rule(
        name,
        metrics,
        compile(expression, name, "eval"),
        int(alarm["EvaluationPeriods"]),
        int(alarm.get("DatapointsToAlarm", alarm["EvaluationPeriods"])),
        lambda value: compare(value, threshold),
        threshold,
        steps,
        int(step["Cooldown"]),
        AGGREGATES[step["MetricAggregationType"]],
    )


@dataclass(frozen=True)
class Reading:
    """How AWS is read where its documentation leaves a choice.

    ``held_out``: a cooldown holds up larger steps out as well; ``held_in``: one after a step out holds up steps in;
    ``newest``: the newest value alone decides the step, not all that the alarm looked at.
    """

    held_out: bool = False
    held_in: bool = True
    newest: bool = False


@dataclass
class Outcome:
    """What came of it; times in seconds."""

    tasks: int = 0
    host_seconds: int = 0
    drawing_seconds: float = 0.0
    longest_wait: int = 0
    most_desired: int = 0
    orders: list[tuple[int, int, int]] = field(default_factory=list)
    """Of each change: when, from, to."""
    backlogs: list[int] = field(default_factory=list)
    """Messages at each step of the clock."""
    desired: list[int] = field(default_factory=list)
    hosts: list[int] = field(default_factory=list)


@dataclass
class Service:
    """Workers, hosts and the queue."""

    rules: Rules
    seconds_an_image: float
    rng: random.Random
    reading: Reading = Reading()
    now: int = 0
    desired: int = 0
    ready_at: list[int] = field(default_factory=list)
    """Of each worker, those that start included, oldest first."""
    left: list[int] = field(default_factory=list)
    """When hosts without a worker are gone."""
    queue: deque[list[int]] = field(default_factory=deque)
    backlog: int = 0
    outcome: Outcome = field(default_factory=Outcome)
    _minute: dict[str, list[int]] = field(default_factory=lambda: {"visible": [], "held": []})
    _published: deque[tuple[int, dict[str, list[int]]]] = field(default_factory=lambda: deque(maxlen=30))
    """Of each minute, the oldest first: when it is there, and what it held."""
    _until: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each rule: when its cooldowns end, after a step out and after one in."""
    _credit: float = 0.0

    def step(self, arrivals: int) -> None:
        if arrivals:
            self.queue.append([self.now, arrivals])
            self.backlog += arrivals
            self.outcome.tasks += arrivals
        self._draw()
        working = sum(1 for one in self.ready_at if one <= self.now)
        held = min(self.backlog, working)
        self._minute["visible"].append(self.backlog - held)
        self._minute["held"].append(held)
        self.now += STEP
        self.left = [one for one in self.left if one > self.now]
        self.outcome.host_seconds += STEP * (len(self.ready_at) + len(self.left))
        if self.now % MINUTE == 0:
            self._published.append((self.now + self.rng.randint(*LAG), self._minute))
            self._minute = {"visible": [], "held": []}
            for rule in self.rules.every:
                self._evaluate(rule)
        self.outcome.backlogs.append(self.backlog)
        self.outcome.desired.append(self.desired)
        self.outcome.hosts.append(len(self.ready_at) + len(self.left))

    def _draw(self) -> None:
        working = sum(1 for one in self.ready_at if one <= self.now)
        self._credit = min(self._credit, working) + working * STEP / self.seconds_an_image
        drawn = min(int(self._credit), self.backlog)
        self._credit -= drawn
        self.backlog -= drawn
        self.outcome.drawing_seconds += drawn * self.seconds_an_image
        while drawn:
            arrived, count = self.queue[0]
            taken = min(count, drawn)
            drawn -= taken
            self.outcome.longest_wait = max(self.outcome.longest_wait, self.now + STEP - arrived)
            if taken == count:
                self.queue.popleft()
            else:
                self.queue[0][1] -= taken

    def _evaluate(self, rule: Rule) -> None:
        values = self._values(rule)
        if sum(map(rule.breaches, values)) < rule.needed:
            return
        wanted = rule.wants(values[-1] if self.reading.newest else rule.aggregate(values))
        if wanted is None:
            return
        wanted = max(self.rules.least, min(self.rules.most, wanted))
        out, into = self._until.get(rule.name, (0, 0))
        if wanted > self.desired and not (self.reading.held_out and self.now < out):
            self._until[rule.name] = (self.now + rule.cooldown, 0)
            self._set(wanted)
        elif wanted < self.desired and self.now >= max(into, out if self.reading.held_in else 0):
            self._until[rule.name] = (out, self.now + rule.cooldown)
            self._set(wanted)

    def _values(self, rule: Rule) -> list[float]:
        """Of the alarm's periods, the newest last. What is not there yet repeats what was there before."""
        late = LAG[1] // MINUTE + 1
        if len(self._published) < rule.periods + late:
            return []
        filled: list[float] = []
        last = 0.0
        for there_at, minute in islice(self._published, len(self._published) - rule.periods - late, None):
            if there_at <= self.now:
                counts = {name: STATISTICS[how](minute[number]) for name, (number, how) in rule.metrics.items()}
                last = rule.value(counts)
            filled.append(last)
        return filled[-rule.periods :]

    def _set(self, wanted: int) -> None:
        self.outcome.orders.append((self.now, self.desired, wanted))
        self.outcome.most_desired = max(self.outcome.most_desired, wanted)
        self.desired = wanted
        while len(self.ready_at) > wanted:
            self.ready_at.pop()  # the newest: those that start are not protected
            self.left.append(self.now + self.rules.idle)
        while len(self.ready_at) < wanted:
            self.ready_at.append(self.now + COLD_START)


def play(
    rules: Rules, messages: Iterator[int], *, seconds_an_image: float = 3.0, seed: int = 1, reading: Reading = Reading()
) -> Outcome:
    """Plays all messages, a number for each step of the clock."""
    service = Service(rules, seconds_an_image, random.Random(seed), reading)
    for count in messages:
        service.step(count)
    return service.outcome


@dataclass(frozen=True)
class Burst:
    """``rate`` an hour, from ``start``, for ``long`` seconds."""

    start: int
    long: int
    rate: float


def bursts(seed: int, minutes: tuple[int, int] = (10, 180), *, days: int = 10, most: int = 4000) -> list[Burst]:
    """Of so many ``minutes``, up to ``most`` an hour, with half an hour to four hours of quiet between them."""
    rng, at = random.Random(seed), 0
    found: list[Burst] = []
    while True:
        start = at + rng.randrange(30 * MINUTE, 240 * MINUTE)
        long = rng.randrange(minutes[0] * MINUTE, minutes[1] * MINUTE)
        if (at := start + long) > days * DAY:
            return found
        found.append(Burst(start, long, rng.uniform(0, most)))


def arrivals(of: list[Burst], seed: int, quiet: int = 2 * 3600) -> Iterator[int]:
    """Messages in each step of the clock, at random times, and ``quiet`` seconds at the end."""
    rng, at = random.Random(seed), 0
    for burst in of:
        yield from repeat(0, max(0, (burst.start - at) // STEP))
        for _ in range(burst.long // STEP):
            yield poisson(rng, burst.rate / 3600 * STEP)
        at = burst.start + burst.long
    yield from repeat(0, quiet // STEP)


def poisson(rng: random.Random, mean: float) -> int:
    count, left = 0, rng.expovariate(1.0)
    while left < mean:
        count += 1
        left += rng.expovariate(1.0)
    return count
