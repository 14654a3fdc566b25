"""Take the pictures of a run and of the page of all runs into docs/images.

    .venv/bin/python docs/renew_images.py output/RUN

`make bench` writes those of the benchmark. Chromium and chromedriver take the screenshots.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

IMAGES = Path(__file__).resolve().parent / "images"
WIDTH = 1280  # CSS pixels
# Name, height in CSS pixels, and the word in the heading that it begins with.
SHOTS = ("page", 1450, "Runs"), ("map", 1100, "Map"), ("mistakes", 1040, "mistakes")


def renew(run: Path) -> None:
    """Copy the pictures of a run; photograph the page beside its folder: top, map, and first list of mistakes."""
    for name in ("history", "learning_curve", "confusion_matrix", "calibration"):
        shutil.copy(run / f"{name}.png", IMAGES)
    options = webdriver.ChromeOptions()
    for argument in ("headless", "no-sandbox", "hide-scrollbars"):
        options.add_argument(argument)
    with webdriver.Chrome(options) as driver:
        driver.get((run.resolve().parent / "index.html").as_uri())
        for name, height, word in SHOTS:
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            heading = driver.find_element(By.XPATH, f"//*[self::h1 or self::h3 or self::h4][contains(., '{word}')]")
            driver.execute_script("arguments[0].scrollIntoView(); scrollBy(0, -25)", heading)
            driver.save_screenshot(IMAGES / f"{name}.png")


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
