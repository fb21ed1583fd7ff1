"""Screenshots of the web page for its documentation.

triptych app --prompts PROMPTS & python scripts/page_screenshots.py http://127.0.0.1:7860 IMAGE
"""

import argparse
import re
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PROMPT = "a photo of a red circle left of a blue square"
COLOURS = 128  # small files; the page has few


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("image", type=Path, help="to chat about")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parsed = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 940})
        page.goto(parsed.address)
        generate(page)
        save(page, parsed.out / "web_generate.png")
        chat(page, parsed.image)
        save(page, parsed.out / "web_chat.png")
        compare(page)
        save(page, parsed.out / "web_compare.png")
        browser.close()


def generate(page) -> None:
    page.fill("#generate-prompt textarea", PROMPT)
    page.get_by_label("New seed each time").first.uncheck()
    page.click("#generate")
    page.get_by_text(re.compile("4 images in")).wait_for(timeout=120_000)


def chat(page, image: Path) -> None:
    page.get_by_role("tab", name="Chat").click()
    page.set_input_files("#question input[type=file]", image)
    page.locator("#question img").first.wait_for()
    questions = ("what colour is the circle?", "how many shapes are there?")
    for number, question in enumerate(questions):
        page.fill("#question textarea", question)
        page.keyboard.press("Enter")
        page.locator("#talk .bot").nth(number).wait_for()
        page.wait_for_timeout(1500)


def compare(page) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Features: steps").locator("visible=true").nth(1).fill("3")
    page.get_by_label("Your name").fill("Ada")
    page.fill("#compare-prompt textarea", PROMPT)
    page.get_by_role("button", name="What is compared").click()
    page.wait_for_timeout(500)
    page.click("#show-pair")
    page.locator("#right-image img").wait_for(timeout=120_000)
    page.locator("#vote-left:enabled").click()
    page.get_by_text("95% interval").wait_for()


def save(page, path: Path) -> None:
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    page.screenshot(path=path, full_page=True)
    image = Image.open(path).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
