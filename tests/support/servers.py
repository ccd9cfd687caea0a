"""The gateway, Squid, nginx and Redis as real processes with files of their own in a temporary directory.

Decides with which configuration a stranger would meet them: the gateway's defaults, Debian's rules
for Squid, a bare nginx around the configuration that is under test. Knows nothing of the tests.
"""

import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.parts import ROOT, part
from tests.support.processes import Process, free_port


class Server(Process):
    """A process that listens on 127.0.0.1."""

    host = "127.0.0.1"
    port: int

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a slash at the end."""
        return f"http://{self.host}:{self.port}"


class Gateway(Server):
    """`python -m gateway` in an empty directory, ready when it has printed its address."""

    def __init__(
        self,
        *arguments: str,
        directory: Path,
        config: str | None = None,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        """`config` is the text of a gateway.yaml, which is written into `directory` and given.

        `port` is that of an earlier one, which this one takes the place of.
        """
        self.port = port or free_port()
        command = [sys.executable, "-m", "gateway", "--port", str(self.port)]
        if config is not None:
            file = directory / "gateway.yaml"
            file.write_text(config, encoding="utf-8")
            command += ["--config", str(file)]
        path = os.pathsep.join([str(ROOT), str(directory)])
        super().__init__(
            [*command, *arguments],
            name="gateway",
            cwd=directory,
            env={"PYTHONPATH": path, **(env or {})},
        )
        try:
            self.wait_for_output(rf"http://[^\s/]+:{self.port}")
            self.wait_for_port(self.port)
        except BaseException:
            self.stop()
            raise


# What Debian ships in /etc/squid/squid.conf, without its comments. CONNECT goes to port 443 only,
# and a request to upgrade is forwarded without its Upgrade header: both block WebSockets.
_SQUID = """
acl localnet src 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7 fe80::/10
acl SSL_ports port 443
acl Safe_ports port 80 21 443 70 210 1025-65535 280 488 591 777
http_access deny !Safe_ports
http_access deny CONNECT !SSL_ports
http_access allow localhost manager
http_access deny manager
http_access allow localhost
http_access deny all
http_port 127.0.0.1:{port}
coredump_dir {directory}
refresh_pattern ^ftp: 1440 20% 10080
refresh_pattern -i (/cgi-bin/|\\?) 0 0% 0
refresh_pattern . 0 20% 4320

pid_filename {directory}/squid.pid
access_log stdio:{directory}/access.log
cache_log {directory}/cache.log
visible_hostname localhost
pinger_enable off
shutdown_lifetime 0 seconds
max_filedescriptors 1024
"""


class Squid(Server):
    """A caching HTTP proxy with Debian's rules, as root or as an ordinary user."""

    def __init__(self) -> None:
        self.port = free_port()
        self.directory = _directory("squid", owner="proxy")
        config = self.directory / "squid.conf"
        config.write_text(_SQUID.format(port=self.port, directory=self.directory), "utf-8")
        # By its name Squid calls its shared memory: two of one name end each other.
        own = f"gateway{self.port}"
        super().__init__([part("squid"), "-N", "-n", own, "-d", "1", "-f", config], name="squid")
        try:
            self.wait_for_port(self.port)
        except BaseException:
            self.stop()
            raise

    @property
    def access_log(self) -> str:
        """One line for each request that is over: time, duration in ms, client, result, …."""
        log = self.directory / "access.log"
        return log.read_text("utf-8", errors="replace") if log.exists() else ""

    def stop(self, timeout: float = 5.0) -> None:
        super().stop(timeout)
        shutil.rmtree(self.directory, ignore_errors=True)


_NGINX = """
{user}
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    access_log {directory}/access.log;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{http}
}}
"""


class Nginx(Server):
    """A real nginx around what goes into its `http` block; `port` is one that it listens on."""

    def __init__(self, http: str, port: int) -> None:
        self.port = port
        self.directory = _directory("nginx")
        self.config = self.directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        text = _NGINX.format(user=user, directory=self.directory, http=http)
        self.config.write_text(text, "utf-8")
        super().__init__(nginx_command(self.config), name="nginx")
        try:
            self.wait_for_port(port)
        except BaseException:
            self.stop()
            raise

    @property
    def access_log(self) -> str:
        """One line for each request that is over, in nginx's `combined` form."""
        return (self.directory / "access.log").read_text("utf-8", errors="replace")

    def stop(self, timeout: float = 5.0) -> None:
        super().stop(timeout)
        shutil.rmtree(self.directory, ignore_errors=True)


class Redis(Process):
    """A Redis or Valkey on a unix socket, which keeps nothing on disk. `url` is what a store is given."""

    def __init__(self, *options: str, directory: Path | None = None) -> None:
        """`directory` is that of an earlier one, which this one takes the place of."""
        # Not one of pytest's: the path of a socket may have a hundred letters, no more.
        self.directory = directory or _directory("redis")
        self.socket = self.directory / "redis.sock"
        self.url = f"redis+unix://{self.socket}"
        self.socket.unlink(missing_ok=True)
        quiet: list[str | Path] = ["--port", "0", "--save", "", "--appendonly", "no", "--dir", self.directory]
        super().__init__([part("redis"), *quiet, "--unixsocket", self.socket, *options], name="redis")
        try:
            self.wait_for_output("[Rr]eady to accept connections")
        except BaseException:
            self.stop()
            raise

    def remove(self) -> None:
        """Stop it, and forget where it was."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def nginx_command(config: Path, *options: str) -> list[str | Path]:
    """The command line that runs nginx on a configuration and on nothing of the machine's own."""
    return [part("nginx"), "-e", "stderr", "-p", config.parent, "-c", config, *options]


def _directory(name: str, owner: str | None = None) -> Path:
    """A new directory that a server may use which gives up root for `owner`.

    Not one of pytest's: those may be entered by the user who runs the tests only.
    """
    made = Path(tempfile.mkdtemp(prefix=f"gateway-test-{name}-"))
    made.chmod(0o755)
    if owner and os.geteuid() == 0:
        user = pwd.getpwnam(owner)
        os.chown(made, user.pw_uid, user.pw_gid)
    return made
