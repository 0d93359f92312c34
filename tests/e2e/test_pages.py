"""The pages in a browser, on a phone and on a screen: shop, payment page, outcome, events and documentation."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import trio
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from server.db.connection import Connection
from server.db.doctor.run import broken_promises
from server.process.instance import Instance, Options, open_instance
from tests.conftest import program
from tests.support.florin import PAID

pytestmark = pytest.mark.slow

SECONDS = 20
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture
async def instance(directory: Path) -> AsyncIterator[Instance]:
    options = Options(data_directory=directory, workers=1, port=0, psp_port=0, shop_port=0)
    async with open_instance(options) as running:
        yield running


@contextmanager
def browsing(width: int) -> Iterator[webdriver.Chrome]:
    """A browser whose window has that width."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for flag in FLAGS:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=program("chromedriver")))
    try:
        browser.set_page_load_timeout(SECONDS)
        browser.implicitly_wait(SECONDS)
        metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield browser
    finally:
        browser.quit()


def until(browser: webdriver.Chrome, text: str) -> None:
    """Wait until the page shows a text; it may refresh itself meanwhile."""
    WebDriverWait(browser, SECONDS).until(lambda _: text in browser.page_source)


def require_fit(browser: webdriver.Chrome) -> None:
    """No page is wider than the window."""
    wide, window = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window, browser.current_url


@pytest.mark.parametrize("width", [390, 1280])
async def test_a_person_buys(instance: Instance, width: int) -> None:
    await trio.to_thread.run_sync(_buy, instance.running.shop_url, width)
    connection = await Connection.open(instance.database_url)
    assert await connection.query("SELECT status, count(*) FROM payment_requests GROUP BY 1") == [("SUCCEEDED", 3)]
    assert await broken_promises(connection) == []
    connection.discard()


def _buy(shop_url: str, width: int) -> None:
    with browsing(width) as browser:
        browser.get(f"{shop_url}/events")
        until(browser, "None yet")
        require_fit(browser)
        _buy_by_typing(browser, shop_url)
        _buy_by_clicking(browser, shop_url)
        _wait_for_the_outcome(browser, shop_url)


def _buy_by_typing(browser: webdriver.Chrome, shop_url: str) -> None:
    _open_payment(browser, shop_url)
    said = browser.find_element(By.TAG_NAME, "main").text
    for shown in ("Demo shop", "A kilo of coffee", "19.90 EUR", "cart-", "4242 4242 4242 4242"):
        assert shown in said
    card = browser.find_element(By.ID, "card")
    card.send_keys("4000 0000 0000 0002")
    card.submit()
    assert "Try another one" in browser.find_element(By.CSS_SELECTOR, "[role=alert]").text
    card = browser.find_element(By.ID, "card")
    card.send_keys(PAID)
    card.submit()
    until(browser, "Paid. Thank you")
    require_fit(browser)
    assert re.fullmatch(r"pay_\w+", browser.find_element(By.ID, "payment").text)


def _buy_by_clicking(browser: webdriver.Chrome, shop_url: str) -> None:
    _open_payment(browser, shop_url)
    browser.find_element(By.CSS_SELECTOR, "button[value='4000000000009995']").click()
    assert "insufficient funds" in browser.find_element(By.CSS_SELECTOR, "[role=alert]").text
    require_fit(browser)
    browser.find_element(By.CSS_SELECTOR, f"button[value='{PAID}']").click()
    until(browser, "Paid. Thank you")


def _wait_for_the_outcome(browser: webdriver.Chrome, shop_url: str) -> None:
    """The page after the payment and the list of events show what happens without a click."""
    _open_payment(browser, shop_url)
    payment_url = browser.current_url
    back = browser.find_element(By.LINK_TEXT, "Back to Demo shop")
    back.click()
    until(browser, "Not paid yet")
    require_fit(browser)
    assert httpx2.post(payment_url, data={"card": PAID}).status_code == 303
    until(browser, "Paid. Thank you")
    browser.find_element(By.LINK_TEXT, "Received events").click()
    WebDriverWait(browser, SECONDS).until(lambda _: browser.page_source.count("payment.succeeded") == 3)
    require_fit(browser)


def _open_payment(browser: webdriver.Chrome, shop_url: str) -> None:
    browser.get(shop_url)
    require_fit(browser)
    browser.find_element(By.ID, "buy-coffee").click()
    browser.find_element(By.ID, "card")
    require_fit(browser)


@pytest.mark.parametrize("width", [390, 1280])
async def test_the_documentation_fits(instance: Instance, width: int) -> None:
    await trio.to_thread.run_sync(_read, instance.running.api_urls[0], instance.running.psp_url, width)


def _read(api_url: str, psp_url: str, width: int) -> None:
    with browsing(width) as browser:
        browser.get(api_url)
        assert browser.current_url == f"{api_url}/docs"
        require_fit(browser)
        browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
        require_fit(browser)
        assert "payments.create(amount=1990" in browser.find_element(By.ID, "payments_create").text
        browser.get(psp_url)
        until(browser, f"curl {psp_url}/control")
        require_fit(browser)
