"""gateway.yaml: what it may say, and the one line that says what is wrong with it."""

import dataclasses
import re
import sys
import textwrap

import pytest

from gateway.config import Limits, Listen, Ping, Settings, Timeouts
from gateway.configfile import Config, ConfigError, load
from gateway.hooks import CommandHook, FunctionHook, WebhookHook
from tests.support.parts import ROOT

FUNCTIONS = """
def open(handler): ...
def on_message(handler, message): ...
def on_close(handler): ...
def why(handler, closing): ...
def nothing(): ...
def switch_off(end): ...
def clean_up(end): ...
def auth(request): return "Ada"
async def later(handler, message): ...
number = 7
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """`write(yaml, chat=…)` writes a configuration and modules beside it; the path to load."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def write(text, **modules):
        for name, source in {"chatfns": FUNCTIONS, **modules}.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        path = tmp_path / "gateway.yaml"
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return path

    yield write
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# -- what it may say -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_is_the_defaults(write, text):
    config = load(write(text))
    assert (config.settings, config.listen, config.routes) == (Settings(), None, ())


def test_everything_at_once(write):
    config = load(
        write(
            """
            listen: 0.0.0.0:9000
            ping: {interval: 5s, timeout: 500ms}
            static_prefix: https://static.example.com/gateway
            origins: [https://a.example, "*.b.example"]
            trusted_proxies: [127.0.0.1, 10.0.0.0/8]
            limits: {payload: 2_000_000, channels: 8}
            timeouts: {grace: 1m, leave: 1.5}
            routes:
              /chat/{room}:
                open: chatfns.open
                on_message: {function: chatfns.on_message}
                on_close: chatfns:why
                auth: chatfns.auth
                origins: localhost
            """
        )
    )
    assert config.listen == Listen("0.0.0.0", 9000)
    assert config.settings == Settings(
        ping=Ping(5.0, 0.5),
        limits=Limits(payload=2_000_000, channels=8),
        timeouts=Timeouts(grace=60.0, leave=1.5),
    )
    assert config.static_prefix == "https://static.example.com/gateway"
    assert config.origins == ("https://a.example", "*.b.example")
    assert config.trusted_proxies == ("127.0.0.1", "10.0.0.0/8")
    (route,) = config.routes
    assert route.pattern.match("/chat/7") == {"room": "7"}
    names = {name: function.__name__ for name, function in route.functions.items()}
    assert names == {"open": "open", "on_message": "on_message", "on_close": "why"}
    assert route.auth is not None
    assert route.auth("request") == "Ada"
    assert route.origins is not None
    assert route.origins.lists("http://localhost:1")


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("9000", Listen("127.0.0.1", 9000)),
        (":9000", Listen("0.0.0.0", 9000)),
        ("localhost:0", Listen("localhost", 0)),
        ("'[::1]:9000'", Listen("::1", 9000)),
        ("12:30", Listen("12", 30)),  # YAML 1.1 reads this as a number in base 60
        ("unix:/run/gateway.sock", Listen(path="/run/gateway.sock")),
    ],
)
def test_where_to_listen(write, text, listen):
    assert load(write(f"listen: {text}")).listen == listen


@pytest.mark.parametrize(
    ("text", "ping"),
    [
        ("fast", Ping(3, 3)),
        ("compat", Ping(25, 20)),
        ("{interval: 5}", Ping(5, 10)),
        ("10s+500ms", Ping(10, 0.5)),
        ("{timeout: 2m}", Ping(10, 120)),
    ],
)
def test_heartbeat(write, text, ping):
    assert load(write(f"ping: {text}")).settings.ping == ping


def test_routes_may_be_a_list(write):
    config = load(write("routes: [{pattern: /a, open: chatfns.open}, {pattern: /b, open: chatfns.open}]"))
    assert [route.pattern.text for route in config.routes] == ["/a", "/b"]


@pytest.mark.parametrize(
    "call", ["chatfns.on_message", "chatfns.on_message(handler, message)", "chatfns:on_message"]
)
def test_forms_of_a_function(write, call):
    (route,) = load(write(f"routes: {{/a: {{on_message: '{call}'}}}}")).routes
    assert route.functions["on_message"].__name__ == "on_message"


def test_the_gramex_sample(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (route,) = load(ROOT / "examples" / "chatbot" / "gateway.yaml").routes
    assert set(route.functions) == {"open", "on_message", "on_close"}
    assert route.pattern.match("/pingbot") == {}
    assert route.origins is not None
    assert route.origins.lists("https://gramener.com")
    del sys.modules["pingbot"]


def test_gramex_patterns_are_regular_expressions(write):
    text = """
    url:
      bot:
        pattern: /bot/(\\d+)
        handler: WebSocketHandler
        kwargs: {open: {function: chatfns.open(handler)}}
    """
    (route,) = load(write(text)).routes
    assert route.pattern.match("/bot/12") == {"0": "12"}
    assert route.pattern.match("/bot/12x") is None


def test_what_becomes_of_messages_that_do_not_fit(write):
    text = "routes: {/a: {open: chatfns.open, overflow: latest}, /b: {open: chatfns.open}}"
    assert [route.overflow for route in load(write(text)).routes] == ["latest", "close"]


def test_cleanup_hooks(write, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    monkeypatch.setenv("HOOK_URL", "https://hooks.example.com/T0/x")
    path = write(
        """
        exit_when_empty: 2m
        cleanup:
          - chatfns.switch_off
          - {function: chatfns.clean_up, limit: 10s, attempts: 3, name: tidy}
          - webhook: http://10.0.0.7/bye
            secret: env:HOOK_SECRET
            private: true
            headers: {Authorization: "file:token", X-Plain: plain}
          - webhook: env:HOOK_URL
          - command: touch "a file"
          - command: [touch, "$HOME"]
        routes:
          /chat: {open: chatfns.open, cleanup: chatfns.switch_off}
          /more: {open: chatfns.open, cleanup: [chatfns.clean_up, {command: 'true'}]}
        """
    )
    (path.parent / "token").write_text("Bearer 7\n")
    config = load(path)
    first, second, third, fourth, fifth, sixth = config.cleanup
    chatfns = sys.modules["chatfns"]
    assert first == FunctionHook(chatfns.switch_off)
    assert second == FunctionHook(chatfns.clean_up, limit=10.0, attempts=3, name="tidy")
    headers = (("Authorization", "Bearer 7"), ("X-Plain", "plain"))
    assert third == WebhookHook("http://10.0.0.7/bye", secret="s3cret", private=True, headers=headers)
    assert fourth == WebhookHook("https://hooks.example.com/T0/x")
    assert (fifth, sixth) == (CommandHook(("touch", "a file")), CommandHook(("touch", "$HOME")))
    chat, more = config.routes
    assert chat.hooks == (first,)
    assert more.hooks == (FunctionHook(chatfns.clean_up), CommandHook(("true",)))
    assert config.settings.exit_when_empty == 120.0


@pytest.mark.parametrize(
    ("text", "store"),
    [
        ("memory:", "memory:"),
        ("sqlite:///var/lib/x.sqlite3", "sqlite:///var/lib/x.sqlite3"),
        ("sqlite:here.sqlite3", "sqlite://{folder}/here.sqlite3"),
        ("env:STORE", "redis://:s3cret@127.0.0.1/0"),
    ],
)
def test_where_sessions_are_recorded(write, monkeypatch, text, store):
    """A relative path is one beside the file, wherever the gateway is started."""
    monkeypatch.setenv("STORE", "redis://:s3cret@127.0.0.1/0")
    path = write(f"store: '{text}'")
    assert load(path).store == store.format(folder=path.parent)


# -- what is wrong with it -----------------------------------------------------------------------

WRONG = [
    # the file, the line, what the message says
    ("lissten: 1", 1, "lissten: is not a key here; did you mean listen?"),
    ("\nxyz: 1", 1, "xyz: is not a key here; there are: listen, ping,"),
    ("listen: 1\nlisten: 2", 2, "listen: is there twice"),
    ("[1, 2]", 1, "is to be a mapping"),
    ("just text", 1, "is to be a mapping"),
    ("listen:", 1, "listen: is empty; give a value or leave the key out"),
    ("listen: [1]", 1, "listen: is to be one value"),
    ("listen: here", 1, "listen: 'here' is no address: write 127.0.0.1:8000"),
    ("listen: 127.0.0.1:99999", 1, "is no address"),
    ("listen: ':http'", 1, "is no address"),
    ("ping: slow", 1, "ping: 'slow' is no heartbeat: write compat, default, fast, or 10s+5s"),
    ("ping: {interval: 0}", 1, "ping.interval: '0' is no duration: write 10, 10s, 500ms or 2m"),
    ("ping: {interval: -1}", 1, "is no duration"),
    ("ping: {interval: 10 s x}", 1, "is no duration"),
    ("ping: {intervall: 1}", 1, "ping.intervall: is not a key here; did you mean interval?"),
    ("timeouts: {grace: forever}", 1, "timeouts.grace: 'forever' is no duration"),
    ("timeouts:\n  grce: 1", 2, "timeouts.grce: is not a key here; did you mean grace?"),
    ("limits: {payload: 1MB}", 1, "limits.payload: '1MB' is not a whole number above 0"),
    ("limits: {payload: 0}", 1, "is not a whole number above 0"),
    ("origins: [good.example, 'https://x/y']", 1, "origins[1]: 'https://x/y' is not an origin: write https"),
    ("trusted_proxies: [10.0.0.300]", 1, "trusted_proxies[0]: '10.0.0.300' is no address: write"),
    ("static_prefix: 'javascript:x'", 1, "static_prefix: 'javascript:x' is no prefix: write https://"),
    ("""static_prefix: 'https://x"><script>'""", 1, "is no prefix"),
    ("routes: {a: {open: chatfns.open}}", 1, "routes.a: 'a' does not start with /"),
    ("routes: {/a: {}}", 1, "routes./a: serves nothing: give it on_message, open or on_close"),
    (
        "routes:\n  /a:\n    on_mesage: chatfns.on_message",
        3,
        "routes./a.on_mesage: is not a key here; did you mean on_message?",
    ),
    ("routes: [{open: chatfns.open}]", 1, "routes[0]: has no pattern"),
    (
        "routes: [{pattern: /a, open: chatfns.open}, {pattern: /a, open: chatfns.open}]",
        1,
        "another route has the pattern /a",
    ),
    (
        "routes:\n  /_gateway/x: {open: chatfns.open}",
        2,
        "routes./_gateway/x: what is below /_gateway/ belongs to the gateway",
    ),
    ("routes:\n  /a: {open: chatfns.open}\n  /a: {open: chatfns.open}", 3, "routes./a: is there twice"),
    (
        "routes: {/a: {overflow: newest, open: chatfns.open}}",
        1,
        "routes./a.overflow: 'newest' is none of close, drop_oldest, latest",
    ),
    (
        "routes: {/a: {auth: true, open: chatfns.open}}",
        1,
        "routes./a.auth: name a function: auth: module.function",
    ),
    ("routes: {/a: {open: open}}", 1, "routes./a.open: 'open' is no function: write module.function"),
    ("routes: {/a: {open: 'chatfns.open(1, x=2)'}}", 1, "is no function: write module.function"),
    ("routes: {/a: {open: 'os.system(\"x\")'}}", 1, "is no function: write module.function"),
    (
        "routes: {/a: {open: {functions: x.y}}}",
        1,
        "routes./a.open.functions: is not a key here; did you mean function?",
    ),
    ("routes: {/a: {open: {}}}", 1, "routes./a.open: has no function"),
    ("routes: {/a: {open: chat.open}}", 1, "routes./a.open: no module named 'chat' beside the configuration"),
    (
        "routes: {/a: {on_message: chatfns.on_mesage}}",
        1,
        "chatfns has no function 'on_mesage'; did you mean on_message?",
    ),
    (
        "routes: {/a: {on_message: chatfns.xyz}}",
        1,
        "chatfns has no function 'xyz'; it has: open, on_message, on_close,",
    ),
    ("routes: {/a: {on_message: chatfns.number}}", 1, "on_message is not a function"),
    (
        "routes: {/a: {on_message: chatfns.nothing}}",
        1,
        "nothing is called with (handler, message), but does not take that",
    ),
    (
        "routes:\n  /a:\n    open: needy.open",
        3,
        "routes./a.open: needy needs the module 'nowhere_at_all', which is not installed",
    ),
    ("routes: {/a: {open: broken.open}}", 1, "broken is not Python: broken.py:2:"),
    (
        "routes: {/a: {open: failing.open}}",
        1,
        "importing failing failed at failing.py:2: ZeroDivisionError: division by zero",
    ),
    ("routes: {/a: {open: leaving.open}}", 1, "importing leaving failed at leaving.py:1: SystemExit: 3"),
    ("store: nowhere", 1, "store: that is no URL of a store: write memory:, sqlite:///absolute/path"),
    ("store: mysql://u:p@x/", 1, "store: mysql: is no kind of store"),
    ("store: env:NO_SUCH_VARIABLE", 1, "store: the environment has no NO_SUCH_VARIABLE"),
    ("exit_when_empty: never", 1, "exit_when_empty: 'never' is no duration"),
    ("cleanup:", 1, "cleanup: is empty"),
    ("cleanup: true", 1, "cleanup: 'true' is no function: write module.function"),
    ("cleanup: {}", 1, "cleanup: is to have one of function, webhook and command"),
    ("cleanup:\n  - {function: chatfns.switch_off, command: x}", 2, "cleanup[0]: is to have one of function"),
    ("cleanup: [{webhok: 'https://x.example/'}]", 1, "webhok: is not a key here; did you mean webhook?"),
    ("cleanup: chatfns.switch_of", 1, "chatfns has no function 'switch_of'; did you mean switch_off?"),
    ("cleanup: chatfns.nothing", 1, "cleanup: chatfns.nothing is called with (end), but does not take that"),
    ("cleanup: chatfns.number", 1, "cleanup: 7 is not a function"),
    ("cleanup: {function: chatfns.switch_off, limit: 0}", 1, "cleanup.limit: '0' is no duration"),
    ("cleanup: {function: chatfns.switch_off, attempts: 0}", 1, "cleanup.attempts: '0' is not a whole"),
    ("cleanup: {function: chatfns.switch_off, name: 'a b'}", 1, "cleanup.function: 'a b' is no name"),
    ("cleanup: {function: chatfns.switch_off, secret: x}", 1, "cleanup.secret: is for webhooks"),
    ("cleanup: {webhook: hooks.example.com}", 1, "cleanup.webhook: it is no URL: write https://host/path"),
    ("cleanup: {webhook: 'http://u:p@x.example/'}", 1, "name and password have no place in the URL"),
    ("cleanup: {webhook: 'http://10.0.0.7/'}", 1, "10.0.0.7 is an address of a private network; write `priv"),
    ("cleanup: {webhook: 'http://x.example/', private: maybe}", 1, "'maybe' is neither true nor false"),
    ("cleanup: {webhook: 'http://x.example/', secret: 'env:NONE_7'}", 1, "the environment has no NONE_7"),
    ("cleanup: {webhook: 'http://x.example/', secret: 'file:none'}", 1, "none cannot be read: No such file"),
    ("cleanup: {webhook: 'http://x.example/', headers: {Host: x}}", 1, "the header Host is set by the gate"),
    ("cleanup: {webhook: 'http://x.example/', headers: [a]}", 1, "cleanup.headers: is to be a mapping"),
    ("cleanup: {command: no-such-program-7 -x}", 1, "cleanup.command: there is no program no-such-program-7"),
    ("cleanup: {command: []}", 1, "cleanup.command: the command is empty"),
    ("cleanup: {command: 'touch \"a'}", 1, "cleanup.command: No closing quotation"),
    ("routes: {/a: {open: chatfns.open, cleanup: {x: y}}}", 1, "routes./a.cleanup.x: is not a key here"),
    ("url: {bot: {pattern: /bot}}", 1, "url.bot: has no handler"),
    (
        "url: {bot: {pattern: /bot, handler: FunctionHandler, kwargs: {}}}",
        1,
        "only WebSocketHandler is served here",
    ),
    (
        "url: {bot: {pattern: '/b(', handler: WebSocketHandler, kwargs: {}}}",
        1,
        "url.bot.pattern: '/b(' is no regular expression",
    ),
    (
        "url: {bot: {pattern: /$YAMLURL/b, handler: WebSocketHandler, kwargs: {}}}",
        1,
        "variables are not replaced here",
    ),
    ("url: {bot: {pattern: bot, handler: WebSocketHandler, kwargs: {}}}", 1, "does not start with /"),
    ("a: [1", 1, "is not YAML"),
    ("listen: 1\n\t- x", 2, "is not YAML"),
    ("a: !!python/object/apply:os.system [x]", 1, "a: is not a key here"),
    ("listen: !!python/object/apply:os.system ['true']", 1, "listen: is to be one value"),
    ("a: \x07", 1, "is not YAML"),
    ("? [a]\n: b", 1, "a key is to be text"),
    ("<<: {listen: 1}", 1, "<<: is not a key here"),
    ("listen: &a [*a]", 1, "listen: is to be one value"),
]


@pytest.mark.parametrize(("text", "line", "message"), WRONG, ids=[row[0][:50] for row in WRONG])
def test_what_is_wrong_is_one_line(write, text, line, message):
    path = write(
        text,
        needy="import nowhere_at_all",
        broken="x = 1\ndef open(:",
        failing="x = 0\n1 / x",
        leaving="raise SystemExit(3)",
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    said = str(caught.value)
    assert "\n" not in said
    assert message in said
    assert re.match(re.escape(str(path)) + rf":{line}\b", said) or "is not YAML" in said


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        load(tmp_path / "gateway.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path / "binary.yaml")


def test_what_the_defaults_are():
    assert Config().settings.ping == Ping(10.0, 10.0)
    assert str(Listen()) == "127.0.0.1:8000"


# -- docs/configuration.md -----------------------------------------------------------------------


def test_the_documents_example_loads(write):
    text = (ROOT / "docs" / "configuration.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    config = load(write(example, chat=FUNCTIONS, users=FUNCTIONS, lab=FUNCTIONS))
    assert config.settings == Settings(exit_when_empty=30.0)
    assert config.store == "sqlite:/var/lib/gateway/sessions.sqlite3"
    assert len(config.routes) == 1
    assert [hook.label for hook in (*config.cleanup, *config.routes[0].hooks)] == [
        "lab.switch_off",
        "webhook:hooks.example.com",
        "command:touch",
        "chat.clean_up",
    ]


@pytest.mark.parametrize("kind", [Limits, Timeouts])
def test_the_document_has_every_setting_with_its_default(kind):
    text = (ROOT / "docs" / "configuration.md").read_text()
    for row in dataclasses.fields(kind):
        (line,) = [line for line in text.splitlines() if re.match(rf"\|[^|]*`{row.name}`[^|]*\|", line)]
        assert f"{row.default:,}".removesuffix(".0") in line


def test_the_engineservers_document_has_the_same_bound():
    text = (ROOT / "docs" / "engineserver.md").read_text()
    assert f"{Limits().outbound_messages:,} messages" in text
