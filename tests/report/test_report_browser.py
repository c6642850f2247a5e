"""The report in a real browser: what its controls change, and that nothing goes wrong or out."""

import dataclasses
import time
from io import BytesIO

import numpy as np
import pytest
from browser import browser, missing
from PIL import Image
from results_of_all_kinds import of_checkpoint, sharpness, spectrum, trajectory
from surfaces import three_classes

from landscape.report import open_sources, page
from landscape.results import quadrature, store

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"the page is not tried in a browser: {missing()}"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets that the driver's client leaves to the collector
]

NAME = "<script>alert(1)</script>"


@pytest.fixture
def opened(tmp_path, monkeypatch, no_figures):
    """Write the page of some results, open it in a browser, and look at the console when the test is done."""
    monkeypatch.setenv("SE_AVOID_STATS", "true")
    with browser(tmp_path / "profile") as driver:

        def open_page(results):
            for name, result in results.items():
                store.save(tmp_path / name, result)
            made = {tmp_path / name: result for name, result in results.items()}
            (tmp_path / "report.html").write_text(page(open_sources(made)), encoding="utf-8")
            driver.get((tmp_path / "report.html").as_uri())
            return driver

        yield open_page
        errors = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert errors == []
        # What a page fetches is listed, but for what is in itself.
        fetched = driver.execute_script("return performance.getEntriesByType('resource').map((r) => r.name)")
        assert [name for name in fetched if not name.startswith("data:")] == []


def choose(driver, name, value):
    """Give a control a value as a hand does."""
    driver.execute_script(
        "const it = document.getElementById(arguments[0]); it.value = arguments[1];"
        "it.dispatchEvent(new Event('input', { bubbles: true }));",
        name,
        str(value),
    )


def wait_until(driver, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not driver.execute_script(f"return {condition}"):
        assert time.monotonic() < deadline, f"not in {seconds} s: {condition}"
        time.sleep(0.2)


def curves_of(driver, holder="density-chart"):
    script = "return [...document.querySelectorAll(`#${arguments[0]} path.curve`)].map((p) => p.getAttribute('d'))"
    return driver.execute_script(script, holder)


def text_of(driver, name):
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", name)


def test_choices_change_the_curves(opened):
    one = of_checkpoint(dataclasses.replace(spectrum(), parts=("class 0", " class  1", NAME)))
    driver = opened({"a.h5": one, "b.h5": of_checkpoint(spectrum(2, seed=1), "b"), "s.h5": of_checkpoint(sharpness())})
    first = curves_of(driver)
    assert len(first) == 2  # class 0 of both
    offered = driver.execute_script("return [...document.getElementById('part').options].map((o) => o.value)")
    assert offered == [*one.parts, "class 1"]
    choose(driver, "part", one.parts[1])  # white space is part of a name
    assert len(curves_of(driver)) == 1
    choose(driver, "part", NAME)
    (other,) = curves_of(driver)  # of one of the two
    assert other not in first
    label = driver.execute_script("return document.querySelector('#density-chart svg').getAttribute('aria-label')")
    assert label.startswith(f"Eigenvalue density of {NAME}. a: lambda_max")
    choose(driver, "part", "class 0")
    assert curves_of(driver) == first
    choose(driver, "width", 1)
    assert curves_of(driver) != first
    choose(driver, "axis", "linear")
    assert len(curves_of(driver)) == 2
    assert driver.execute_script("return document.querySelectorAll('#density-chart path.band').length") == 2
    driver.find_element("id", "band").click()
    assert driver.execute_script("return document.querySelectorAll('#density-chart path.band').length") == 0


def test_the_width_begins_at_the_packages_own_and_is_turned_by_keys(opened):
    result = of_checkpoint(spectrum())
    driver = opened({"a.h5": result})
    found = [quadrature.nodes_and_weights(result.alpha[p], result.beta[p], result.steps[p])[0] for p in range(3)]
    places = quadrature.symlog(np.concatenate(found))
    width = quadrature.width_of("auto", float(np.nanmin(places)), float(np.nanmax(places)), 12)
    assert float(text_of(driver, "width-value").split()[0]) == pytest.approx(width, rel=1e-3)
    before = curves_of(driver)
    driver.find_element("id", "width").send_keys("\ue014")  # the key of the arrow to the right
    assert float(text_of(driver, "width-value").split()[0]) == pytest.approx(width * 10**0.05, rel=1e-3)
    assert curves_of(driver) != before


def test_measures_stand_against_frequency_and_the_table_sorts(opened):
    driver = opened({"a.h5": of_checkpoint(spectrum()), "s.h5": of_checkpoint(sharpness()), "t.h5": sharpness()})
    signs = "return document.querySelectorAll('#frequency-chart path[fill]').length"
    assert driver.execute_script("return document.getElementById('measure').value") == "lambda_max"
    assert driver.execute_script(signs) == 3
    choose(driver, "measure", "ball_rise")
    assert driver.execute_script(signs) == 6
    head = driver.find_element("xpath", "//table[@id='summary-table']//button[text()='trace']")
    column = "return [...document.querySelectorAll('#summary-table tbody tr')].map((r) => r.cells[9].textContent)"
    head.click()
    falling = driver.execute_script(column)
    assert falling[3:] == [""] * 3  # those that have none are last
    assert falling[:3] == sorted(falling[:3], key=lambda text: -float(text.split()[0]))
    head.send_keys("\ue007")  # the key Enter
    rising = driver.execute_script(column)
    assert rising[3:] == falling[2::-1]
    assert driver.execute_script("return document.querySelector('th[aria-sort]').ariaSort") == "ascending"


@pytest.mark.slow
def test_surfaces_are_drawn_and_turn(opened):
    plane = three_classes(9, 7, marks=(NAME,))
    loss = plane.loss.copy()
    loss[0, 0, 0] = np.nan
    driver = opened({
        "a.h5": of_checkpoint(dataclasses.replace(plane, loss=loss)),
        "t.h5": of_checkpoint(trajectory(), "b"),
    })
    # A first drawing compiles shaders without a graphics card.
    wait_until(driver, "[...document.querySelectorAll('.relief')].every((r) => r.querySelector('canvas'))")
    assert driver.execute_script("return document.getElementById('no-webgl').hidden")
    heights = "return document.querySelector('.relief').data[0].z"
    before = driver.execute_script(heights)
    assert before[0][0] is None  # a hole
    assert driver.execute_script("return DATA.surfaces.scale.log")  # the losses of the two span decades
    np.testing.assert_allclose(np.array(before[1], dtype=float), np.log10(plane.loss[0, 1]), rtol=1e-4)
    driver.execute_script(
        "const it = document.querySelector('.choose-part'); it.value = 2; it.dispatchEvent(new Event('change'));"
    )
    wait_until(driver, "document.querySelector('.relief').data[0].z[0][0] !== null")
    np.testing.assert_allclose(np.array(driver.execute_script(heights)), np.log10(plane.loss[2]), rtol=1e-4)
    choose(driver, "azimuth", 90)
    # Both views turn together.
    wait_until(
        driver, "[...document.querySelectorAll('.relief')].every((r) => Math.abs(r.layout.scene.camera.eye.x) < 1e-9)"
    )
    driver.execute_script("document.getElementById('surface').scrollIntoView()")
    image = Image.open(BytesIO(driver.get_screenshot_as_png()))
    colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 1000  # a lit surface has as many, a blank page a few
