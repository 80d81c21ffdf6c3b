"""The page of the report service in a real Chromium: its buttons, its bar, its report."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import time

import httpx
import pytest

from tests.helpers import alive, must_have_browser, service, wait_until

pytestmark = pytest.mark.slow

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # it refuses to have one as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing():
    found = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    found["selenium"] = importlib.util.find_spec("selenium")
    return [name for name, where in found.items() if where is None]


@pytest.fixture(autouse=True)
def _is_there():
    if missing():
        refuse = pytest.fail if must_have_browser() else pytest.skip
        refuse(f"no {', '.join(missing())} on this machine (apt: chromium, chromium-driver)")


def users_of(profile):
    """The processes that were started with this profile: the browser's own, and its helpers."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if os.fsencode(profile) in file.read():
                    found.append(int(pid))
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


@contextlib.contextmanager
def browser(profile):
    """A Chromium of its own, gone at the end with all its processes."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options=options, service=driver) as page:
        yield page
    wait_until(lambda: not users_of(profile))


def bar(page):
    return float(page.find_element("id", "bar").get_property("value"))


def text(page, name):
    return page.find_element("id", name).text


def press(page, name):
    page.find_element("id", name).click()


@pytest.mark.timeout(300)  # it computes for seconds, or many of them on a busy machine
def test_a_report_with_its_progress(tmp_path):
    with service("report_service") as (address, _), browser(tmp_path) as page:
        page.get(f"{address}/?pause=0.01")
        assert page.title == "Report"
        assert not page.find_element("id", "cancel").is_enabled()
        press(page, "start")
        seen = []

        def is_done():
            seen.append(bar(page))
            return text(page, "what") == "done"

        wait_until(is_done, 240)
        assert seen == sorted(seen)
        assert len(set(seen)) > 3, seen
        report = json.loads(text(page, "report"))
        assert report["modules"] == bar(page) > 100
        assert httpx.get(f"{address}/jobs").json() == []
        assert page.find_element("id", "start").is_enabled()


def test_the_child_goes_with_its_page(tmp_path):
    with service("report_service") as (address, _), browser(tmp_path) as page:
        page.get(f"{address}/?pause=1")

        def started():
            press(page, "start")
            wait_until(lambda: " of " in text(page, "what"))
            (job,) = httpx.get(f"{address}/jobs").json()
            assert job["state"] == "running"
            assert alive(job["pid"])
            return job["pid"]

        def is_gone(pid):
            return not alive(pid) and not httpx.get(f"{address}/jobs").json()

        first = started()
        press(page, "cancel")
        assert text(page, "what") == "cancelled"
        wait_until(lambda: is_gone(first))
        stood_at = bar(page)
        time.sleep(1.2)  # more than one step of the report
        assert bar(page) == stood_at
        assert text(page, "report") == ""

        second = started()
        page.get("about:blank")
        wait_until(lambda: is_gone(second))

        page.back()
        third = started()
        page.switch_to.new_window()
        other, ours = page.current_window_handle, page.window_handles[0]
        page.switch_to.window(ours)
        page.close()
        page.switch_to.window(other)
        wait_until(lambda: is_gone(third))
        assert len({first, second, third}) == 3
