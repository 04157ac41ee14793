"""The page in a real browser, against a real service: what people do with it, from prompt to pixels."""

from __future__ import annotations

import hashlib
import io
import re
import time
import urllib.request
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from PIL import Image

from .conftest import SLOW

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Locator, Page, Request, Route

    from .conftest import Desk, Service


def frame(page: Page, prompt: str) -> Locator:
    return page.locator(".frame", has_text=prompt)


def settings(page: Page, **values: object) -> None:
    for name, value in values.items():
        page.fill(f"#field-{name}", str(value))


def slow_task(page: Page, prompt: str) -> None:
    """Submitted by hand, and seen to be under way."""
    page.fill("#prompt", prompt)
    settings(page, **SLOW)
    page.click("#send")
    frame(page, prompt).get_by_text(re.compile(r"left|Step \d+ of")).wait_for()


def seen(page: Page, result: dict[str, Any]) -> tuple[Image.Image, Image.Image]:
    """What the screen shows of a task's first picture, reduced to its own size; and the picture from S3."""
    image = page.locator(".print img")
    page.wait_for_function("(element) => element.complete && element.naturalWidth > 0", arg=image.element_handle())
    shown = Image.open(io.BytesIO(image.screenshot())).convert("RGB")
    with urllib.request.urlopen(result["images"][0]["url"]) as reply:
        stored = Image.open(io.BytesIO(reply.read())).convert("RGB")
    factor, rest = divmod(shown.width, stored.width)
    assert (factor >= 4, rest, shown.height) == (True, 0, stored.height * factor)
    return shown.resize(stored.size, Image.Resampling.NEAREST), stored


def test_from_prompt_to_pixels(desk: Desk, service: Service) -> None:
    page = desk.page(service.url)
    prompt, seed = "a red apple on a blue background", 2**53 + 1  # more than a JavaScript number holds
    page.fill("#prompt", prompt)
    settings(page, seed=seed, num_inference_steps=30)
    page.click("#send")
    frame(page, prompt).locator(".ring").wait_for()
    frame(page, prompt).locator("img:not(.preview)").wait_for()
    (result,) = service.named(prompt)
    assert (result["request"]["seed"], result["request"]["num_inference_steps"]) == (seed, 30)
    frame(page, prompt).locator("a").click()
    page.locator("dd", has_text=result["images"][0]["sha256"]).wait_for()
    assert page.locator("dl").get_by_text(str(seed), exact=True).count() == 1
    shown, stored = seen(page, result)
    assert shown.tobytes() == stored.tobytes()


def test_cancel(desk: Desk, service: Service) -> None:
    page = desk.page(service.url)
    slow_task(page, "a ghost")
    frame(page, "a ghost").get_by_role("button", name="Cancel: a ghost").click()
    frame(page, "a ghost").get_by_text("Cancelled").wait_for()
    slow_task(page, "a robot")
    frame(page, "a robot").locator("a").click()
    page.locator("#view").get_by_role("button", name="Cancel").click()
    page.locator("#view .state", has_text="Cancelled").wait_for()
    assert [service.named(prompt)[0]["status"] for prompt in ("a ghost", "a robot")] == ["cancelled", "cancelled"]


def test_faults_are_shown_at_their_fields(desk: Desk, service: Service) -> None:
    page = desk.page(service.url)
    settings(page, num_inference_steps=999, width=65, seed="seven")
    page.click("#send")
    page.locator("#said", has_text="Prompt").wait_for()
    for name, words in [("num_inference_steps", "200"), ("width", "multiple of 8"), ("seed", "integer")]:
        field = page.locator(f"#field-{name}")
        assert field.get_attribute("aria-invalid") == "true"
        assert f"field-{name}-fault" in (field.get_attribute("aria-describedby") or "").split()
        assert words in page.locator(f"#field-{name}-fault").inner_text()
    assert page.locator("#prompt").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert page.locator("#field-height").get_attribute("aria-invalid") is None
    settings(page, num_inference_steps=2)
    assert page.locator("#field-num_inference_steps").get_attribute("aria-invalid") is None
    page.get_by_role("button", name="Back to the model's defaults").click()
    page.fill("#prompt", "a cactus")
    page.click("#send")
    frame(page, "a cactus").wait_for()
    assert page.locator("#said").inner_text() == ""


def test_an_input_image_by_its_name(desk: Desk, service: Service) -> None:
    page = desk.page(service.url)
    strength = page.locator("#field-strength")
    assert not strength.is_visible()
    page.fill("#prompt", "a cookie")
    settings(page, image="nowhere")
    assert strength.is_visible()
    settings(page, strength=0.5)
    page.click("#send")
    frame(page, "a cookie").get_by_text("The request is not right.").wait_for()
    (result,) = service.named("a cookie")
    assert (result["request"]["image"], result["request"]["strength"]) == ("nowhere", 0.5)
    assert "no such upload" in result["error"]["message"]


def test_what_has_failed_is_tried_again(desk: Desk, service: Service) -> None:
    failed = service.finish(service.submit("a broom", image="nowhere", seed=5))
    page = desk.page(f"{service.url}/#task/{failed['task_id']}")
    page.locator("#view").get_by_role("button", name="Try it again").click()
    page.wait_for_function("(old) => location.hash !== `#task/${old}`", arg=failed["task_id"])
    page.locator("#view .state", has_text="Failed").wait_for()
    (again,) = [one for one in service.named("a broom") if one["task_id"] != failed["task_id"]]
    assert (again["origin"], again["request"]["seed"]) == (failed["task_id"], 5)


def test_a_failure_in_words(desk: Desk, service: Service) -> None:
    page = desk.page(service.url)
    page.route(
        "**/generate",
        lambda route: route.fulfill(
            status=429,
            headers={"Retry-After": "7", "Content-Type": "application/json"},
            body='{"error": {"code": "QUOTA_EXCEEDED", "message": "it renews at midnight", "details": []}}',
        ),
    )
    page.fill("#prompt", "a crown")
    page.click("#send")
    page.get_by_text("The budget for today is used up. (it renews at midnight) Try again in 7 s.").wait_for()


def test_a_picture_that_is_unsafe_is_a_cross_and_the_others_are_shown(desk: Desk, service: Service) -> None:
    task_id = service.picture("a window", num_images=3)["task_id"]

    def flagged(result: dict[str, Any]) -> dict[str, Any]:
        if result["task_id"] == task_id:
            result["images"][1] |= {"url": None, "unsafe": True, "bytes": 0, "sha256": ""}
        return result

    def alter(route: Route) -> None:
        reply = route.fetch()
        told = reply.json()
        if "results" in told:
            told["results"] = [flagged(one) for one in told["results"]]
        elif "task_id" in told:
            told = flagged(told)
        route.fulfill(response=reply, json=told)

    page = desk.page("about:blank")
    page.route("**/results**", alter)
    page.goto(service.url)
    frame(page, "a window").locator("img").nth(1).wait_for()
    assert frame(page, "a window").get_by_role("img", name="Not kept: unsafe").count() == 1
    frame(page, "a window").locator("a").click()
    page.get_by_role("button", name="Download").wait_for()
    page.get_by_label("Picture 2 of 3").click()
    page.locator(".print").get_by_role("img", name="Not kept: unsafe").wait_for()
    assert not page.get_by_role("button", name="Download").is_visible()


def test_reload_in_the_middle(desk: Desk, service: Service) -> None:
    page = desk.page(service.url)
    slow_task(page, "a volcano")
    page.fill("#prompt", "not sent yet")
    frame(page, "a volcano").locator("a").click()
    page.reload()
    page.locator("#view h2", has_text="a volcano").wait_for()
    page.locator("#view .state", has_text=re.compile(r"left|Step \d+ of")).wait_for()
    page.keyboard.press("Escape")
    assert page.input_value("#prompt") == "not sent yet"
    frame(page, "a volcano").locator(".ring").wait_for()
    page.go_back()
    page.locator("#view[open]").wait_for()


def test_two_tabs(desk: Desk, service: Service) -> None:
    context = desk.context()
    first, second = context.new_page(), context.new_page()
    for page in (first, second):
        page.goto(service.url)
        page.locator("#fields .field").first.wait_for()
    slow_task(first, "a teddy bear")
    frame(second, "a teddy bear").wait_for(timeout=5000)  # told at once, not found at the next look
    frame(second, "a teddy bear").get_by_role("button", name="Cancel").click()
    frame(first, "a teddy bear").get_by_text("Cancelled").wait_for(timeout=10000)


def test_offline_and_back(desk: Desk, service: Service) -> None:
    context = desk.context()
    page = context.new_page()
    page.goto(service.url)
    task = service.submit("a comet", **SLOW)
    page.reload()
    frame(page, "a comet").wait_for()
    context.set_offline(True)
    page.get_by_text("No connection").wait_for()
    frame(page, "a comet").get_by_text("when last heard of").wait_for()
    page.fill("#prompt", "an umbrella")
    settings(page, num_inference_steps=2)
    page.click("#send")
    page.get_by_text("There is no answer").wait_for()
    service.call("DELETE", f"/results/{task}")
    context.set_offline(False)
    page.get_by_text("No connection").wait_for(state="hidden")
    frame(page, "a comet").get_by_text("Cancelled").wait_for()
    page.click("#send")
    frame(page, "an umbrella").locator("img:not(.preview)").wait_for()
    assert len(service.named("an umbrella")) == 1


def test_an_answer_that_got_lost_is_asked_for_again_and_draws_once(desk: Desk, service: Service) -> None:
    page = desk.page(service.url)

    def lose(route: Any) -> None:
        route.fetch()
        route.abort()

    page.route("**/generate", lose)
    page.fill("#prompt", "a kite")
    settings(page, num_inference_steps=2)
    page.click("#send")
    page.get_by_text("There is no answer").wait_for()
    page.unroute("**/generate")
    page.click("#send")
    frame(page, "a kite").locator("img:not(.preview)").wait_for()
    assert len(service.named("a kite")) == 1


def test_by_keyboard_alone(desk: Desk, service: Service) -> None:
    page = desk.page(service.url)
    page.locator("#fields .field").first.wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the contact sheet"
    page.keyboard.press("Tab")
    page.keyboard.type("a trophy")
    page.keyboard.press("Control+Enter")
    frame(page, "a trophy").locator("img:not(.preview)").wait_for()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.frame')?.textContent.includes('a trophy') ?? false"):
            break
    page.keyboard.press("Enter")
    page.locator("#view[open]").wait_for()
    reached: list[str] = []
    while "Use these settings" not in reached and len(reached) < 10:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
    assert "Use these settings" in reached
    page.keyboard.press("Escape")
    page.locator("#view[open]").wait_for(state="detached")
    assert page.evaluate("document.activeElement.closest('.frame') !== null")


def test_again_with_another_seed_and_the_same_settings(desk: Desk, service: Service) -> None:
    result = service.picture("a top hat", negative_prompt="fog", tags=["mine"])
    page = desk.page(f"{service.url}/#task/{result['task_id']}")
    page.get_by_role("button", name="Again with another seed").click()
    page.wait_for_function("(id) => !location.hash.includes(id)", arg=result["task_id"])
    service.finish(service.named("a top hat")[0]["task_id"])
    new, old = service.named("a top hat")
    assert old["task_id"] == result["task_id"]
    assert new["request"]["seed"] != 7
    assert new["request"] | {"seed": 7, "task_id": None} == old["request"] | {"task_id": None}
    page.get_by_role("button", name="Use these settings").click()
    assert page.input_value("#prompt") == "a top hat"
    assert page.input_value("#field-negative_prompt") == "fog"
    assert page.input_value("#field-seed") == str(new["request"]["seed"])


def test_download(desk: Desk, service: Service, tmp_path: Path) -> None:
    result = service.picture("a key", output_format="webp", num_images=2)
    page = desk.page(f"{service.url}/#task/{result['task_id']}/2")
    with page.expect_download() as started:
        page.get_by_role("button", name="Download").click()
    started.value.save_as(tmp_path / "it")
    assert started.value.suggested_filename == f"{result['task_id']}-1.webp"
    assert hashlib.sha256((tmp_path / "it").read_bytes()).hexdigest() == result["images"][1]["sha256"]
    page.get_by_text("its SHA-256 is right").wait_for()
    page.keyboard.press("ArrowLeft")
    page.locator("dd", has_text=result["images"][0]["sha256"]).wait_for()


def test_a_locked_api(desk: Desk, service: Service) -> None:
    page = desk.context().new_page()
    sent: list[str | None] = []

    def guard(route: Any) -> None:
        key = route.request.headers.get("x-api-key")
        sent.append(key)
        if key == "open-sesame":
            route.continue_()
        else:
            route.fulfill(status=403, content_type="application/json", body='{"message": "Forbidden"}')

    page.route(re.compile(r"/(models|results|generate)\b"), guard)
    page.goto(service.url)
    page.fill("#key", "wrong")
    page.get_by_role("button", name="Open").click()
    page.get_by_text("The API refused this key").wait_for()
    page.fill("#key", "open-sesame")
    page.get_by_role("button", name="Open").click()
    page.locator("#fields .field").first.wait_for()
    page.reload()
    page.locator("#fields .field").first.wait_for()
    assert not page.locator("#keys").is_visible()
    assert sent[-1] == "open-sesame"
    assert page.evaluate("[...Object.keys(localStorage)]") == []


def test_polls_cost_little_and_stop_when_nobody_looks(desk: Desk, service: Service) -> None:
    page = desk.page(service.url)
    polls: list[tuple[float, str | None]] = []

    def note(request: Request) -> None:
        if "/results/" in request.url:
            polls.append((time.monotonic(), request.headers.get("if-none-match")))

    page.on("request", note)
    slow_task(page, "a castle")
    for _ in range(150):
        if len(polls) >= 4:
            break
        page.wait_for_timeout(100)
    assert len(polls) >= 3
    assert all(tag for _, tag in polls[1:])
    waits = [later - earlier for (earlier, _), (later, _) in pairwise(polls)]
    assert min(waits[1:]) >= 0.95  # Retry-After is at least a second
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(500)
    before = len(polls)
    page.wait_for_timeout(6000)
    assert len(polls) == before
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(1500)
    assert len(polls) > before


def test_what_comes_from_outside_is_text(desk: Desk, service: Service) -> None:
    prompt = '<img src=x onerror="document.title=1"><b>bold</b> "seed": 12345678901234567890'
    result = service.picture(prompt)
    page = desk.page(f"{service.url}/#task/{result['task_id']}")
    page.locator("#view h2", has_text="<b>bold</b>").wait_for()
    assert page.locator("#view h2").inner_text() == prompt
    assert page.locator("#view h2 *, .frame .prompt *").count() == 0


def test_a_task_that_is_not_there(desk: Desk, service: Service) -> None:
    page = desk.page(f"{service.url}/#task/never-was")
    page.get_by_text("There is no such task").wait_for()
