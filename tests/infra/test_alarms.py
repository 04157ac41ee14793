"""The alarms tell the truth: what was measured goes through each alarm as the template has it, and it rings or not."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from handler import status, submit
from handler.aws.metrics import Metrics
from handler.aws.queue import TaskQueue
from handler.care.deadletters import DeadLetters
from handler.errors import CODES
from handler.settings import Settings
from handler.work.serving import Generate

from ..support import Clock, PlainEngine, event_of
from .template import EXAMPLES, INFRA, Template, read

if TYPE_CHECKING:
    from handler.aws.store import TaskStore

pytestmark = pytest.mark.infra

BODY, ALARMS = read("template.yaml"), read("alarms.yaml")
README = (INFRA / "README.md").read_text()
URL = "https://example.com/darkroom/README.md"
STACK = "prod-2"
Series = Sequence[float | None]
OPERATORS = {"GreaterThanThreshold": operator.gt, "GreaterThanOrEqualToThreshold": operator.ge}


WATCHED = {"FewWorkersAlarm": "counted", "SilentWorkersAlarm": "silent"}
"""Alarms on GPU workers, by what GpuWorkers has to be for them."""


def alarms(**parameters: str) -> dict[str, dict[str, Any]]:
    template = Template(ALARMS, {"Stack": STACK, **parameters})
    made = template.resources().items()
    return {name: one["Properties"] for name, one in made if one["Type"] == "AWS::CloudWatch::Alarm"}


def metrics_of(alarm: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What it looks at, by id; "value" where it looks at one metric alone."""
    if "Metrics" not in alarm:
        return {"value": alarm}
    return {one["Id"]: one["MetricStat"]["Metric"] for one in alarm["Metrics"] if "MetricStat" in one}


def rings(name: str, **series: Series) -> bool:
    """Whether an alarm would ring for what was measured, by metric and period; None where nothing was.

    Source: CloudWatch user guide, "Using metric math" (IF, FILL) and "Evaluating an alarm" (M of N).
    """
    alarm = alarms(GpuWorkers=WATCHED.get(name, "no"))[name]
    assert series.keys() == metrics_of(alarm).keys()
    points = [_point(alarm, dict(zip(series, values, strict=True))) for values in zip(*series.values(), strict=True)]
    breaching = OPERATORS[alarm["ComparisonOperator"]]
    assert alarm["TreatMissingData"] == "notBreaching"
    late = [point is not None and breaching(point, float(alarm["Threshold"])) for point in points]
    every = int(alarm["EvaluationPeriods"])
    needed = int(alarm.get("DatapointsToAlarm", every))
    return any(sum(late[at : at + every]) >= needed for at in range(len(late)))


def _point(alarm: dict[str, Any], values: dict[str, float | None]) -> float | None:
    if "Metrics" not in alarm:
        return values["value"]
    (expression,) = [one["Expression"] for one in alarm["Metrics"] if one["ReturnData"]]
    if all(value is None for value in values.values()):
        return None  # FILL has nothing to fill either
    functions = {
        "FILL": lambda value, other: other if value is None else value,
        "IF": lambda condition, this, that: this if condition else that,
    }
    try:
        # Our own template's, and Python but for one word.
        return float(eval(expression.replace(" AND ", " and "), {**functions, **values}))
    except (TypeError, ZeroDivisionError):  # a period without one of its metrics, or without a quotient: no point
        return None


@pytest.mark.parametrize(
    ("failed", "completed", "rung"),
    [
        (1, None, False),  # one of one: 100 %, and no reason to wake anybody
        (2, 1, False),
        (3, None, True),
        (3, 20, True),
        (3, 100, False),
        (11, 89, True),
        (None, 50, False),
        (None, None, False),
    ],
)
def test_few_tasks_do_not_ring(failed: float | None, completed: float | None, rung: bool) -> None:
    assert rings("TaskErrorsAlarm", failed=[None, failed], completed=[5, completed]) is rung


def test_what_callers_did_wrong_does_not_ring() -> None:
    """It is counted under a name that no alarm looks at, whatever its code (tests/aws/test_metrics.py)."""
    named = {one["MetricName"] for alarm in alarms().values() for one in metrics_of(alarm).values()}
    assert {"TasksFailed", "TasksCompleted", "ModelUnavailable"} <= named
    assert named & {"TasksRefused", "TasksCancelled", "FailedByCode", "4XXError"} == set()


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_codes_that_are_the_callers(capsys: pytest.CaptureFixture[str]) -> None:
    """Written out by hand: what HTTP answers with a 4xx."""
    metrics = Metrics(Settings.load({"METRICS": "1"}))
    for code in CODES:
        metrics.failed(code)  # type: ignore[arg-type]
    lines = told(capsys)
    refused = {after["code"] for before, after in zip(lines[::2], lines[1::2], strict=True) if "TasksRefused" in before}
    assert refused == {"INVALID_REQUEST", "NOT_FOUND", "CONFLICT", "QUOTA_EXCEEDED", "UNSAFE_CONTENT", "CANCELLED"}


def test_one_crash_is_enough_with_one_message() -> None:
    """Its message comes back after a lease or more, so the next crash may be in another period."""
    assert rings("FunctionErrorsAlarm", generate=[None, 1, None, None, None], doctor=[0, 0, 0, 0, 0])
    assert rings("FunctionErrorsAlarm", generate=[None], doctor=[1])
    assert not rings("FunctionErrorsAlarm", generate=[None, 0, None], doctor=[0, 0, 0])


def test_a_model_that_cannot_be_loaded_rings_at_once() -> None:
    assert rings("ModelAlarm", value=[None, 1, None])
    assert not rings("ModelAlarm", value=[None, None])


def test_a_dead_letter_rings_and_the_weekly_call_does_not() -> None:
    """The call is one of the function's Invocations: so it is the queue that is asked, for what was received of it."""
    alarm = alarms()["DeadLettersAlarm"]
    assert (alarm["Namespace"], alarm["MetricName"]) == ("AWS/SQS", "NumberOfMessagesReceived")
    assert alarm["Dimensions"] == [{"Name": "QueueName", "Value": f"{STACK}-dead"}]
    assert rings("DeadLettersAlarm", value=[0, 1])
    assert not rings("DeadLettersAlarm", value=[0, 0, None])


def test_nobody_comes_for_what_waits() -> None:
    """For long enough that a host could have started; one held message is enough of an answer."""
    assert rings("NoWorkerAlarm", waiting=[1] * 15, held=[0] * 15)
    assert not rings("NoWorkerAlarm", waiting=[1] * 14 + [0], held=[0] * 15)
    assert not rings("NoWorkerAlarm", waiting=[1] * 15, held=[0] * 14 + [1])
    # SQS tells of what is held "if in-flight messages exist": where it does not, nobody holds any.
    assert rings("NoWorkerAlarm", waiting=[1] * 15, held=[None] * 15)


def of_each_period(name: str, **minutes: Sequence[float]) -> dict[str, Series]:
    """What a metric's statistic makes of values by the minute."""
    every = {one["Id"]: one["MetricStat"] for one in alarms(GpuWorkers=WATCHED[name])[name]["Metrics"][:-1]}
    statistics: dict[str, Callable[[Sequence[float]], float]] = {"Maximum": max, "Minimum": min, "Sum": sum}
    series: dict[str, Series] = {}
    for metric, values in minutes.items():
        of, long = statistics[every[metric]["Stat"]], every[metric]["Period"] // 60
        # Its window moves with the clock: it need not begin where a fault does.
        series[metric] = [of(values[at : at + long]) for at in range(len(values) - long + 1)]
    return series


@pytest.mark.parametrize(
    ("running", "wanted", "rung"),
    [
        ([0] * 60, [1] * 60, True),  # no capacity at all
        ([3] * 60, [4] * 60, True),  # and none for the last of them
        ([3] * 18 + [4] * 42, [4] * 60, False),
        ([0] * 7 + [1] * 53, [1] * 60, False),  # a cold start
        ([0] * 60, [0] * 41 + [1] * 19, False),
        ([0] * 60, [0] * 40 + [1] * 20, True),
        # It grows by one in ten minutes, and each is there seven minutes later.
        ([(at + 3) // 10 for at in range(60)], [at // 10 + 1 for at in range(60)], False),
        # A host is taken back every quarter of an hour, and the next is there after seven minutes.
        (([1] * 8 + [0] * 7) * 4, [1] * 60, False),
        ([4] * 30 + [0] * 30, [4] * 30 + [0] * 30, False),  # all is drawn
    ],
)
def test_fewer_workers_than_are_wanted(running: list[int], wanted: list[int], rung: bool) -> None:
    assert rings("FewWorkersAlarm", **of_each_period("FewWorkersAlarm", running=running, wanted=wanted)) is rung


def test_nobody_counts_workers_that_were_never_there() -> None:
    assert rings("FewWorkersAlarm", running=[None], wanted=[2])
    # Container Insights are off: it cannot ring, and its parameter says what it needs.
    assert not rings("FewWorkersAlarm", running=[None] * 9, wanted=[None] * 9)
    assert "Insights=enabled" in ALARMS["Parameters"]["GpuWorkers"]["Description"]


def test_workers_are_counted_where_their_stack_has_them() -> None:
    theirs = Template(read("gpu.yaml"), {"Stack": STACK, "ImageUri": EXAMPLES["ImageUri"][0]}).resources()
    alarm = alarms(GpuWorkers="counted")["FewWorkersAlarm"]
    names = {"ClusterName": theirs["Cluster"], "ServiceName": theirs["Workers"]}
    for one in metrics_of(alarm).values():
        told = {dimension["Name"]: dimension["Value"] for dimension in one["Dimensions"]}
        assert told == {name: where["Properties"][name] for name, where in names.items()}
        assert one["Namespace"] == "ECS/ContainerInsights"


NOTHING: Series = [None] * 20


@pytest.mark.parametrize(
    ("waiting", "held", "completed", "refused", "rung"),
    [
        ([5] * 20, [0] * 20, NOTHING, NOTHING, True),  # no host is to be had
        ([5] * 19, [0] * 19, NOTHING[1:], NOTHING[1:], False),
        ([5, 0] * 10, [0, 5] * 10, NOTHING, NOTHING, True),  # workers that die hold what they took
        ([5] * 20, [0] * 20, [*NOTHING[1:], 1], NOTHING, False),
        ([5] * 20, [0] * 20, NOTHING, [1, *NOTHING[1:]], False),
        ([5] * 10 + [0] * 10, [0] * 20, NOTHING, NOTHING, False),
        ([0] * 20, [0] * 20, NOTHING, NOTHING, False),
        ([None] * 20, [None] * 20, NOTHING, NOTHING, False),
    ],
)
def test_workers_that_show_no_sign(
    waiting: Series, held: Series, completed: Series, refused: Series, rung: bool
) -> None:
    assert rings("SilentWorkersAlarm", waiting=waiting, held=held, completed=completed, refused=refused) is rung


def test_alarms_on_workers_are_there_only_where_they_are_asked_for() -> None:
    for name, chosen in WATCHED.items():
        assert alarms(GpuWorkers=chosen).keys() - alarms().keys() == {name}
    assert ALARMS["Parameters"]["GpuWorkers"]["Default"] == "no"


def test_every_alarm_has_been_looked_at_here() -> None:
    assert alarms().keys() == {
        "AgeAlarm",
        "ApiErrorsAlarm",
        "DeadLettersAlarm",
        "DeadLettersWaitAlarm",
        "FunctionErrorsAlarm",
        "ModelAlarm",
        "NearTimeoutAlarm",
        "NoWorkerAlarm",
        "TaskErrorsAlarm",
        "ThrottlesAlarm",
    }
    assert rings("AgeAlarm", value=[901] * 5)
    assert not rings("AgeAlarm", value=[901] * 4 + [900])
    assert rings("ApiErrorsAlarm", value=[0.02, 0.02, 0.02])
    assert not rings("ApiErrorsAlarm", value=[1, 0, 1]), "two faults among few requests"
    assert rings("DeadLettersWaitAlarm", value=[1] * 3)
    assert not rings("DeadLettersWaitAlarm", value=[1, 0, 1])
    assert rings("NearTimeoutAlarm", value=[897_001])
    assert rings("ThrottlesAlarm", value=[1, 1])
    assert not rings("ThrottlesAlarm", value=[1, 0, 1])


def test_the_metrics_are_the_stacks_own(capsys: pytest.CaptureFixture[str]) -> None:
    """What the functions of a stack tell has the dimension that its alarms and its dashboard look for."""
    queue = Template(BODY, pseudo={"AWS::StackName": STACK}).resources()["Queue"]["Properties"]["QueueName"]
    url = f"https://sqs.us-east-1.amazonaws.com/123456789012/{queue}"
    metrics = Metrics(Settings.load({"METRICS": "1", "QUEUE_URL": url}))
    metrics.failed("INTERNAL")
    metrics.unloadable()
    lines = told(capsys)
    namespaces = {about["Namespace"] for line in lines for about in line["_aws"]["CloudWatchMetrics"]}
    looked_at = [one for alarm in alarms().values() for one in metrics_of(alarm).values()]
    own = [one for one in looked_at if one["Namespace"] in namespaces]
    assert {one["MetricName"] for one in own} == {"TasksFailed", "TasksCompleted", "ModelUnavailable"}
    for one in own:
        assert one["Dimensions"] == [{"Name": "stack", "Value": lines[0]["stack"]}]
    text = Template(ALARMS, {"Stack": STACK, "WithDashboard": "true"}).resources()["Dashboard"]["Properties"][
        "DashboardBody"
    ]
    assert f'"stack","{STACK}"' in text
    assert f'{{Darkroom,code,stack}} MetricName=\\"FailedByCode\\" stack=\\"{STACK}\\"' in text
    assert '"service"' not in text


def test_links_open() -> None:
    """Each to a heading that is there; without a place for the document an alarm names it, and pretends no link."""
    headings = re.findall(r"^## (.+)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-"): one for one in headings}
    with_links, without = alarms(RunbookUrl=URL), alarms()
    for chosen in WATCHED.values():
        with_links |= alarms(RunbookUrl=URL, GpuWorkers=chosen)
        without |= alarms(GpuWorkers=chosen)
    for name, alarm in with_links.items():
        (link,) = re.findall(r"https?://\S+|\S+#\S+", alarm["AlarmDescription"])
        place, _, anchor = link.partition("#")
        assert place == URL
        assert anchor in anchors
        plain = without[name]["AlarmDescription"]
        assert plain.endswith(f"See infra/README.md, {anchors[anchor]}")
        assert "#" not in plain
    pattern = ALARMS["Parameters"]["RunbookUrl"]["AllowedPattern"]
    assert re.match(pattern, URL)
    assert not [one for one in ("infra/README.md", "http://a/b", f"{URL}#x") if re.match(pattern, one)]


def of_type(there: dict[str, dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one["Properties"] for one in there.values() if one["Type"] == kind]


def test_what_keeps_functions_awake_is_harmless() -> None:
    """Once a week, with an event of the template's own: all functions but the doctor, whose schedule wakes it anyway.

    No model is loaded, and nothing is asked for.
    """
    there = Template(BODY).resources()
    schedule = there["AwakeSchedule"]["Properties"]
    assert schedule["ScheduleExpression"] == "rate(7 days)"
    called = {target["Arn"].removesuffix(".Arn>") + ">": json.loads(target["Input"]) for target in schedule["Targets"]}
    functions = {f"<{name}>" for name, one in there.items() if one["Type"] == "AWS::Lambda::Function"}
    assert called.keys() == functions - {"<Doctor>"}
    permitted = of_type(there, "AWS::Lambda::Permission")
    assert {one["FunctionName"] for one in permitted if one["SourceArn"] == "<AwakeSchedule.Arn>"} == called.keys()
    nothing: Any = None  # a store, a queue or a pipeline that it asked for anything would break it
    handlers: dict[str, DeadLetters | Generate] = {
        "<DeadLetter>": DeadLetters(Settings.load({}), nothing, nothing, nothing),
        "<Generate>": Generate(Settings.load({}), nothing, nothing, nothing),
    }
    doors = {"<Submit>": submit.handle, "<Status>": status.handle}
    assert called.keys() == handlers.keys() | doors.keys()
    for name, handler in handlers.items():
        assert handler.handle(called[name], _Invocation()) == {"batchItemFailures": []}
    for name, door in doors.items():  # without settings: whatever it asked for would break it
        assert door(called[name], _Invocation()) == {}


def test_a_crash_hides_its_message_for_a_lease_however_long_the_queue_would(
    settings: Settings, store: TaskStore, queue: TaskQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The visibility timeout must be longer than an invocation's time: only the start of the process is under it."""
    visibility = int(Template(BODY).resources()["Queue"]["Properties"]["VisibilityTimeout"])
    lease = int(BODY["Parameters"]["Lease"]["Default"])
    assert settings.lease == lease < visibility / 10
    hidden: list[float] = []
    monkeypatch.setattr(TaskQueue, "change_visibility", lambda _, __, seconds: hidden.append(seconds))

    class Crash(BaseException):
        pass

    def crash(_: Settings) -> PlainEngine:
        assert hidden == [lease]
        raise Crash

    queue.send('{"prompt": "fox"}')
    (message,) = queue.receive(wait=1, hidden=visibility)
    with pytest.raises(Crash):
        Generate(settings, store, queue, crash, now=clock).handle(event_of(message), _Invocation())
    assert set(hidden) == {lease}


class _Invocation:
    def get_remaining_time_in_millis(self) -> int:
        return 900_000
