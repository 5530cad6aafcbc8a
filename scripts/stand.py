"""What the benchmarks and the client tests stand on: the sandbox, a task whose role is lent, and a relay of their own."""

import contextlib
import datetime
import hashlib
import hmac
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

REGION = "ap-northeast-1"
POSTGRES_HOST = f"orders.cluster-abc123.{REGION}.rds.amazonaws.com"
MYSQL_HOST = f"events.cluster-def456.{REGION}.rds.amazonaws.com"
PASSWORD = "correct horse battery staple"
# Where scripts/setup has put MySQL, if it could be had.
MYSQL = pathlib.Path(__file__).resolve().parent.parent / ".tools/mysql"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"{what} did not come up within 20 s")
        time.sleep(0.05)


def wait_port(host, port):
    def listens():
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return True

    wait_until(listens, f"a listener on {host}:{port}")


def sign(secret, date, scope, request):
    """The signature of a canonical request (Signature Version 4)."""
    signed = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for word in [*scope.split("/"), signed]:
        key = hmac.digest(key, word.encode(), "sha256")
    return key.hex()


class Stand:
    """Use as a context manager: what was started ends with it, the latest first."""

    def __init__(self, programs, with_mysql=False):
        self.with_mysql = with_mysql
        self.programs = pathlib.Path(programs).resolve()
        self.children = []
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="bastion-stand-"))
        self.folder.chmod(0o755)

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def start(self):
        options = ["--mysql"] if self.with_mysql else []
        sandbox = self.spawn([self.programs / "bastion-sandbox", "up", *options], stdout=subprocess.PIPE, text=True)
        line = sandbox.stdout.readline()
        if not line:
            sys.exit("the sandbox did not start; what it said stands above")
        self.ready = json.loads(line)
        # A task lends its role; the relays that are looked at run beside it.
        environment = {**os.environ, **self.ready["callers"]["alice"], "HOME": str(self.folder)}
        up = self.spawn(
            [self.programs / "bastion", "up", "demo", "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=self.folder,
        )
        events = (json.loads(line) for line in up.stdout)
        self.task = next(event["task"] for event in events if event["event"] == "ready")

    def spawn(self, command, **options):
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
        self.children.append(child)
        return child

    def close(self):
        for child in reversed(self.children):
            child.terminate()
            try:
                child.wait(40)
            except subprocess.TimeoutExpired:
                child.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def relay(self, program, targets, listen, log=None, **more):
        """A relay with these targets, each with its relay_port, on the loopback address `listen`; `log` takes its records;
        `more` of its configuration."""
        config = {
            "env": "stand", "access": "write", "identity": "optional", "region": REGION, "max_connections": 10_000,
            "target": targets, **more,
        }
        secrets = self.ready.get("secrets_manager")
        relay = self.spawn(
            [program, "relay"],
            stdout=log or (self.folder / f"audit-{listen}.log").open("w"),
            stderr=(self.folder / f"relay-{listen}.log").open("w"),
            env={
                "BASTION_CONFIG": json.dumps(config), "BASTION_LISTEN": listen,
                "BASTION_EXTRA_CA_FILE": self.ready["database"]["ca_file"],
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.ready['endpoint']}/credentials/{self.task}",
                "AWS_ENDPOINT_URL_STS": self.ready["endpoint"], "BASTION_TASK": "stand",
                **({"AWS_ENDPOINT_URL_SECRETS_MANAGER": secrets} if secrets else {}),
            },
        )
        for target in targets.values():
            wait_port(listen, target["relay_port"])
        return relay

    def haproxy(self, port):
        """HAProxy in TCP mode in front of a port of this machine; its own port."""
        listen = free_port()
        settings = self.folder / f"haproxy-{listen}.cfg"
        settings.write_text(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
            f"listen database\n bind 127.0.0.1:{listen}\n server one 127.0.0.1:{port}\n"
        )
        self.spawn([shutil.which("haproxy") or "/usr/sbin/haproxy", "-q", "-f", settings])
        wait_port("127.0.0.1", listen)
        return listen

    def rds_token(self, endpoint, user):
        """What a client without the relay would use as its password: signed with the lent role (SigV4, presigned)."""
        with urllib.request.urlopen(f"{self.ready['endpoint']}/credentials/{self.task}") as answer:
            key = json.load(answer)
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        scope = f"{date[:8]}/{REGION}/rds-db/aws4_request"
        parameters = {
            "Action": "connect", "DBUser": user, "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{key['AccessKeyId']}/{scope}", "X-Amz-Date": date, "X-Amz-Expires": "900",
            "X-Amz-Security-Token": key["Token"], "X-Amz-SignedHeaders": "host",
        }
        query = urllib.parse.urlencode(parameters, quote_via=urllib.parse.quote, safe="")
        request = f"GET\n/\n{query}\nhost:{endpoint}\n\nhost\n{hashlib.sha256(b'').hexdigest()}"
        return f"{endpoint}/?{query}&X-Amz-Signature={sign(key['SecretAccessKey'], date, scope, request)}"

    def local_password(self, listen):
        """What alice is told when she has proven to the relay on `listen` who she is (docs/identity.md)."""
        def ask(body=None):
            with urllib.request.urlopen(f"http://{listen}:7070/v1/authorize", body and json.dumps(body).encode()) as answer:
                return json.load(answer)

        challenge, key = ask(), self.ready["callers"]["alice"]
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        headers = {
            "content-type": "application/x-www-form-urlencoded; charset=utf-8", "host": challenge["sts_host"], "x-amz-date": date,
            "x-amz-security-token": key["AWS_SESSION_TOKEN"], "x-bastion-nonce": challenge["nonce"],
            "x-bastion-task": challenge["task"],
        }
        names, body = ";".join(headers), b"Action=GetCallerIdentity&Version=2011-06-15"
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        request = f"POST\n/\n\n{lines}\n{names}\n{hashlib.sha256(body).hexdigest()}"
        scope = f"{date[:8]}/{REGION}/sts/aws4_request"
        signature = sign(key["AWS_SECRET_ACCESS_KEY"], date, scope, request)
        authorization = (
            f"AWS4-HMAC-SHA256 Credential={key['AWS_ACCESS_KEY_ID']}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        signed = {"authorization": authorization, "x-amz-date": date, "x-amz-security-token": key["AWS_SESSION_TOKEN"]}
        return ask({"nonce": challenge["nonce"], "sts": signed})["local_password"]

    def psql(self, database, sql):
        """As superuser, over the Unix socket."""
        at = ["-h", self.ready["database"]["socket_folder"], "-p", str(self.ready["database"]["port"])]
        command = ["psql", "-X", "-q", "-A", "-t", "-U", "postgres", *at, "-d", database, "-v", "ON_ERROR_STOP=1", "-c", sql]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def mariadb(self, sql):
        return self.as_root("mariadb", self.ready["mariadb"]["socket"], sql)

    def mysql(self, sql):
        return self.as_root(MYSQL / "bin/mysql", self.ready["mysql"]["socket"], sql)

    def as_root(self, program, socket_, sql):
        """As superuser of MariaDB or MySQL, over the Unix socket."""
        command = [program, "--no-defaults", "-S", socket_, "-u", "root", "-N", "-e", sql]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
