"""Addresses and proxies as people type them: read, or refused in one line that shows no password."""

import random
import string
from functools import partial

import pytest

from fedlora.common.addresses import require_loopback, split_address
from fedlora.common.errors import ConfigError
from fedlora.common.proxies import parse_proxy, proxy_for

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("fl.example.org:8470", ("fl.example.org", 8470)),
        ("localhost:1", ("localhost", 1)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("[::1]:8470", ("::1", 8470)),
        ("[fe80::1%eth0]:8470", ("fe80::1%eth0", 8470)),
        ("xn--mller-kva.example:8470", ("xn--mller-kva.example", 8470)),
        ("my_host.:8470", ("my_host.", 8470)),
    ],
)
def test_an_address_is_read(address: str, found: tuple[str, int]) -> None:
    assert split_address(address) == found


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "it has no port"),
        ("fl.example.org", "it has no port"),
        ("fl.example.org:", "the port is no number from 1 to 65535"),
        (":8470", "its host is neither a name nor an IP address"),
        ("fl.example.org:0", "the port is no number from 1 to 65535"),
        ("fl.example.org:65536", "the port is no number from 1 to 65535"),
        ("fl.example.org:08470000", "the port is no number from 1 to 65535"),
        ("fl.example.org:-1", "the port is no number from 1 to 65535"),
        ("fl.example.org:٨٤٧٠", "the port is no number from 1 to 65535"),
        ("http://fl.example.org:8470", "leave out http://"),
        ("HTTPS://fl.example.org:8470/", "leave out https://"),
        ("a://b", "leave out what is before the host"),
        ("fl.example.org:8470/path", "nothing follows the port"),
        ("fl.example.org:8470?x=1", "the port is no number from 1 to 65535"),
        ("fl.example.org/path:8470", "its host is neither a name nor an IP address"),
        ("::1:8470", "an IPv6 address stands in [ ]"),
        ("::1", "an IPv6 address stands in [ ]"),
        ("[::1]", "it has no port"),
        ("[::1:8470", "its host is neither a name nor an IP address"),
        ("[nonsense]:8470", "its host is neither a name nor an IP address"),
        (" fl.example.org:8470", "it has a space or a character that cannot be seen"),
        ("fl.example.org: 8470", "it has a space or a character that cannot be seen"),
        ("fl.example.org:8470\n", "it has a space or a character that cannot be seen"),
        ("fl.example\x1b[2J.org:8470", "it has a space or a character that cannot be seen"),
        ("müller.example:8470", "its host is neither a name nor an IP address"),
        ("a..b:8470", "its host is neither a name nor an IP address"),
        ("-a.b:8470", "its host is neither a name nor an IP address"),
        (f"{'a' * 64}.org:8470", "its host is neither a name nor an IP address"),
        (f"{'a.' * 130}org:8470", "its host is neither a name nor an IP address"),
        (f"me:{SECRET}@fl.example.org:8470", "it has an @"),
        (f"http://me:{SECRET}@fl.example.org:8470", "leave out http://"),
    ],
)
def test_an_address_that_is_none_is_refused_with_what_was_expected(address: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refused:
        split_address(address)
    words = str(refused.value)
    assert reason in words
    assert words.endswith("expected HOST:PORT, such as fl.example.org:8470 or [::1]:8470")
    assert SECRET not in words
    assert words.isprintable()


def test_a_server_may_listen_on_any_port_that_is_free() -> None:
    assert split_address("127.0.0.1:0", listens=True) == ("127.0.0.1", 0)
    require_loopback("[::1]:0")


@pytest.mark.parametrize(
    ("text", "address", "login"),
    [
        ("http://proxy.corp:3128", "proxy.corp:3128", ""),
        ("proxy.corp:3128", "proxy.corp:3128", ""),
        ("  http://proxy.corp:3128/  ", "proxy.corp:3128", ""),
        ("http://proxy.corp", "proxy.corp:80", ""),
        ("http://[::1]:3128", "[::1]:3128", ""),
        ("http://[::1]", "[::1]:80", ""),
        (f"http://me:{SECRET}@proxy.corp:3128", "proxy.corp:3128", f"me:{SECRET}"),
        (f"http://me:{SECRET}#1@proxy.corp:3128", "proxy.corp:3128", f"me:{SECRET}#1"),
        (f"http://me:a@{SECRET}/?@proxy.corp:3128", "proxy.corp:3128", f"me:a@{SECRET}/?"),
        ("http://me:%40%23%zz@proxy.corp:3128", "proxy.corp:3128", "me:@#%zz"),
        ("http://nörth:ä:b@proxy.corp:3128", "proxy.corp:3128", "nörth:ä:b"),
        ("http://me@proxy.corp:3128", "proxy.corp:3128", "me:"),
    ],
)
def test_a_proxy_is_read_whatever_its_password_has(text: str, address: str, login: str) -> None:
    import base64

    proxy = parse_proxy(text, "https_proxy")
    assert proxy.address == address
    assert proxy.authorization == (f"Basic {base64.b64encode(login.encode()).decode()}" if login else "")
    assert SECRET not in repr(proxy)
    assert "Basic" not in repr(proxy)


@pytest.mark.parametrize(
    "text",
    [
        f"https://me:{SECRET}@proxy.corp:3128",
        f"socks5://me:{SECRET}@proxy.corp:1080",
        f"http://me:{SECRET}",
        f"http://me:{SECRET}@",
        f"http://me:{SECRET}@proxy.corp:port",
        f"http://me:{SECRET}@proxy.corp:99999",
        f"http://me:{SECRET}@proxy corp:3128",
        f"http://me:{SECRET}@proxy.corp:3128/path",
        f"http://me:{SECRET}@[::1:3128",
        f"://{SECRET}",
        f"http://{SECRET}:{SECRET}:{SECRET}",
        "http://",
    ],
)
def test_a_proxy_that_is_none_is_named_by_its_variable_and_not_shown(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", text)
    with pytest.raises(ConfigError) as refused:
        proxy_for("fl.example.org")
    words = str(refused.value)
    assert words.startswith("https_proxy is no HTTP proxy's address")
    assert "expected http://HOST:PORT or http://USER:PASSWORD@HOST:PORT" in words
    assert not {SECRET, "corp", "port}"} & set(words.replace(":", " ").split())
    assert SECRET not in words
    monkeypatch.setenv("no_proxy", "fl.example.org")
    assert proxy_for("fl.example.org") is None


def test_whatever_is_typed_is_an_address_and_a_proxy_or_one_line() -> None:
    draw = random.Random(0)
    pieces = [*string.printable, "http://", "[", "]", "::", "@", "%", "localhost", "8470", SECRET, "\x00", "é", "😀"]
    refusals: list[str] = []
    num_read = 0
    for _ in range(20_000):
        text = "".join(draw.choice(pieces) for _ in range(draw.randrange(9)))
        for read in (split_address, partial(parse_proxy, variable="https_proxy")):
            try:
                read(text)
                num_read += 1
            except ConfigError as error:
                refusals.append(str(error))
    assert all(refusal.isprintable() for refusal in refusals)
    assert num_read > 0
