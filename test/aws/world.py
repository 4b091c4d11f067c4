# SPDX-License-Identifier: Apache-2.0
"""A small AWS for tests: moto with signature checks, a proxy of ours in front of it, IMDS beside it.

moto is imported once and forked for each test: a new server in a new process, without the two
seconds that its import takes. The proxy keeps every exchange as bytes, honours ClientToken as EC2 does
(moto makes a second instance), and does what a test's rules say: answer itself, drop, delay, call the
test back. It listens on a port that the kernel chose.
"""
import functools
import http.client
import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
import urllib.parse

# moto reads these when it is imported.
os.environ.update(MOTO_ENABLE_AMI_VALIDATION="1", MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION="1",
                  MOTO_ENABLE_KEYPAIR_VALIDATION="0", MOTO_IAM_LOAD_MANAGED_POLICIES="0")

REGION = "us-east-2"
BIN = pathlib.Path(os.environ.get("PEERPOD_BIN", "build/bin"))
SOURCE = pathlib.Path(os.environ.get("PEERPOD_SOURCE", "."))
CORPUS = pathlib.Path(os.environ.get("PEERPOD_CORPUS", SOURCE / ".." / "shared" / "corpus"))
MAC = "0e:49:61:0f:c3:11"
# An Amazon Linux of moto's own list: a root device, 8 GiB or so, x86_64.
IMAGE_NAME = "amzn-ami-hvm-2017.09.1.20171103-x86_64-gp2"


# -- moto --

QUOTAS = {}  # EC2's, code -> value, of the next server


def know_quotas():
    """moto serves another service's quotas only; its code is the same for all."""
    from moto.servicequotas.models import ServiceQuotasBackend
    own = ServiceQuotasBackend.get_service_quota

    def get(self, service_code, quota_code):
        if service_code != "ec2" or quota_code not in QUOTAS:
            return own(self, service_code, quota_code)
        return {"Adjustable": True, "GlobalQuota": False, "QuotaCode": quota_code,
                "QuotaName": "vCPUs", "ServiceCode": "ec2", "Unit": "None",
                "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
                "Value": QUOTAS[quota_code]}

    ServiceQuotasBackend.get_service_quota = get


@functools.lru_cache(maxsize=None)
def moto_app():
    """What every server is forked from: it has answered the first request to each service, which takes
    most of a second (url maps, the list of AMIs)."""
    import werkzeug.test
    from moto.server import DomainDispatcherApplication, create_backend_app
    know_quotas()
    app = DomainDispatcherApplication(create_backend_app)
    client = werkzeug.test.Client(app)
    for service, version, action in (("ec2", "2016-11-15", "DescribeImages"),
                                     ("ec2", "2016-11-15", "DescribeSubnets"),
                                     ("ec2", "2016-11-15", "DescribeSecurityGroups"),
                                     ("iam", "2010-05-08", "ListUsers"),
                                     ("sts", "2011-06-15", "GetCallerIdentity")):
        signed = ("AWS4-HMAC-SHA256 Credential=setup/20260101/"
                  f"{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=0")
        done = client.post("/", data={"Action": action, "Version": version},
                           headers={"Authorization": signed})
        assert done.status_code == 200, done.text
    return app


def serve_moto(report, app):
    import werkzeug.serving
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)

    class Quiet(werkzeug.serving.WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_args):
            pass

    server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True,
                                          request_handler=Quiet)
    os.write(report, str(server.server_port).encode())
    os.close(report)
    server.serve_forever()


class Moto:
    def __init__(self):
        app = moto_app()
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(reader)
                serve_moto(writer, app)
            finally:
                os._exit(1)
        os.close(writer)
        self.port = int(os.read(reader, 16))
        os.close(reader)

    def stop(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


# -- the proxy --

class Exchange:
    """One request as it came over the wire, and what was answered."""

    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers, self.body = method, path, headers, body
        self.status = None
        self.answer = b""
        self.time = time.monotonic()
        self.target = next((v for k, v in headers if k.lower() == "x-amz-target"), None)
        self.form = dict(urllib.parse.parse_qsl(body.decode("latin-1"), keep_blank_values=True)) \
            if method == "POST" and not self.target else {}

    @property
    def action(self):
        return self.target.rpartition(".")[2] if self.target else self.form.get("Action", "")


class Drop(Exception):
    """A rule: the connection ends without an answer."""


def error(code, message="told to", status=400):
    """An EC2 error answer, for a rule to return."""
    return status, (f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>{code}</Code>'
                    f"<Message>{message}</Message></Error></Errors><RequestID>req-{code}</RequestID>"
                    "</Response>").encode()


class Proxy:
    """rules: callables (exchange) -> None to pass it on, or (status, body[, headers]) to answer.
    before: callables (exchange) once no rule has answered and before moto hears of it.
    after: callables (exchange) once moto has answered and before the client hears of it.
    refuse() and listen(): nobody listens at the port for a while."""

    def __init__(self, moto_port):
        self.moto_port = moto_port
        self.exchanges = []
        self.rules = []
        self.before = []
        self.after = []
        self.tokens = {}
        self.listens = False
        self.lock = threading.Lock()
        self.token_lock = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args):
                pass

            def handle_one(self):
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                exchange = Exchange(self.command, self.path, list(self.headers.items()), body)
                with proxy.lock:
                    proxy.exchanges.append(exchange)
                try:
                    if not proxy.listens:  # on a connection of before
                        raise Drop
                    status, answer, *headers = proxy.answer(exchange)
                except Drop:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                exchange.status, exchange.answer = status, answer
                try:
                    self.send_response(status)
                    headers = dict(headers[0]) if headers else {}
                    headers.setdefault("Content-Type", "text/xml;charset=UTF-8")
                    headers.setdefault("Content-Length", str(len(answer)))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(answer)
                except OSError:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = handle_one

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_args):
                pass

        self.make_server = lambda: Server(("127.0.0.1", self.port), Handler)
        # Keeps the port ours while nobody listens.
        self.place = socket.socket()
        self.place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.place.bind(("127.0.0.1", 0))
        self.port = self.place.getsockname()[1]
        self.listen()

    def listen(self):
        self.server = self.make_server()
        self.listens = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def refuse(self):
        self.listens = False
        self.server.shutdown()
        self.server.server_close()

    def answer(self, exchange):
        for rule in list(self.rules):
            got = rule(exchange)
            if got is not None:
                return got
        for hook in list(self.before):
            hook(exchange)
        token = exchange.form.get("ClientToken") if exchange.action == "RunInstances" else None
        if token:
            with self.token_lock:
                answer = self.run_once(token, exchange)
        else:
            answer = self.forward(exchange)
        for hook in list(self.after):
            hook(exchange)
        return answer

    def run_once(self, token, exchange):
        """What EC2 does: the same token answers with the instance that it made; other parameters
        with the same token are refused."""
        known = self.tokens.get(token)
        if known and known[0] != sorted(exchange.form.items()):
            return error("IdempotentParameterMismatch", "Arguments on this idempotent request are "
                         "inconsistent with arguments used in previous request(s).")
        if known:
            return known[1]
        answer = self.forward(exchange)
        if answer[0] == 200:
            self.tokens[token] = (sorted(exchange.form.items()), answer)
        return answer

    def forward(self, exchange):
        connection = http.client.HTTPConnection("127.0.0.1", self.moto_port, timeout=60)
        connection.putrequest(exchange.method, exchange.path, skip_host=True,
                              skip_accept_encoding=True)
        for name, value in exchange.headers:
            connection.putheader(name, value)
        connection.endheaders(exchange.body)
        reply = connection.getresponse()
        answer = reply.read()
        connection.close()
        return reply.status, answer

    def of(self, action):
        with self.lock:
            return [e for e in self.exchanges if e.action == action]

    def stop(self):
        if self.listens:
            self.refuse()
        self.place.close()


# -- IMDS --

class Imds:
    """IMDSv2 as a node has it: without the token nothing."""

    TOKEN = "AQAEAtoken=="

    def __init__(self, values):
        self.values = values
        self.hook = lambda when, path: None  # "before" and "after" the answer is made; may raise Drop
        imds = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args):
                pass

            def reply(self, status, text):
                data = text.encode()
                try:
                    imds.hook("before", self.path)
                    imds.hook("after", self.path)
                except Drop:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_PUT(self):
                ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
                good = self.path == "/latest/api/token" and ttl
                self.reply(*((200, imds.TOKEN) if good else (400, "")))

            def do_GET(self):
                if self.headers.get("X-aws-ec2-metadata-token") != imds.TOKEN:
                    return self.reply(401, "")
                value = imds.values.get(self.path)
                return self.reply(*((404, "") if value is None else (200, value)))

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


# -- the whole --

POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


class World:
    def __init__(self, policy=None, quotas=None):
        QUOTAS.clear()
        QUOTAS.update(quotas or {})
        self.moto = Moto()
        self.proxy = Proxy(self.moto.port)
        self.key = ("setup", "setup")
        self.prepare(policy or POLICY)
        self.imds = Imds({
            "/latest/meta-data/mac": MAC,
            "/latest/meta-data/placement/region": REGION,
            f"/latest/meta-data/network/interfaces/macs/{MAC}/subnet-id": self.subnets[0],
            f"/latest/meta-data/network/interfaces/macs/{MAC}/security-group-ids": self.group,
        })

    def client(self, service):
        import boto3
        import botocore.config
        return boto3.client(service, endpoint_url=f"http://127.0.0.1:{self.moto.port}",
                            region_name=REGION, aws_access_key_id=self.key[0],
                            aws_secret_access_key=self.key[1],
                            config=botocore.config.Config(retries={"max_attempts": 0}))

    def prepare(self, policy):
        self.ec2 = self.client("ec2")
        iam = self.client("iam")
        subnets = self.ec2.describe_subnets()["Subnets"]
        self.subnets = [s["SubnetId"] for s in sorted(subnets, key=lambda s: s["AvailabilityZone"])]
        self.vpc = subnets[0]["VpcId"]
        self.group = self.ec2.create_security_group(
            GroupName="peerpod", Description="pod VMs", VpcId=self.vpc)["GroupId"]
        images = self.ec2.describe_images(Filters=[{"Name": "name", "Values": [IMAGE_NAME]}])
        self.image = images["Images"][0]["ImageId"]
        iam.create_user(UserName="peerpod")
        iam.put_user_policy(UserName="peerpod", PolicyName="p", PolicyDocument=json.dumps(policy))
        iam.create_user(UserName="root")
        iam.put_user_policy(UserName="root", PolicyName="p", PolicyDocument=json.dumps(POLICY))
        self.user_key = self.new_key(iam, "peerpod")
        self.key = self.new_key(iam, "root")
        self.ec2 = self.client("ec2")
        connection = http.client.HTTPConnection("127.0.0.1", self.moto.port)
        connection.request("POST", "/moto-api/reset-auth", "0", {"Content-Type": "text/plain"})
        assert connection.getresponse().status == 200
        connection.close()

    @staticmethod
    def new_key(iam, user):
        key = iam.create_access_key(UserName=user)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    def own_environment(self):
        return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self.imds.port}",
                "AWS_ACCESS_KEY_ID": self.user_key[0], "AWS_SECRET_ACCESS_KEY": self.user_key[1],
                "AWS_REGION": REGION, "PODVM_AMI_ID": self.image, "AWS_SETTLE_TIME": "1s"}

    def environment(self, **more):
        """Of the programs under test: nothing of the caller's own AWS set-up."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        env.update(self.own_environment(), **more)
        return {k: v for k, v in env.items() if v is not None}

    def command(self, *words, flags=()):
        return [str(BIN / "provider_tool"), "aws", *flags, *words]

    def tool(self, *words, flags=(), env=None, timeout=60):
        """Runs provider_tool; returns what it printed, one object a line."""
        done = subprocess.run(self.command(*words, flags=flags), env=env or self.environment(),
                              capture_output=True, text=True, timeout=timeout, check=False)
        out = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode in (0, 1), (done.returncode, done.stderr)
        assert (done.returncode == 1) == any("error" in o for o in out), (done, out)
        return out

    def one(self, *words, **more):
        out = self.tool(*words, **more)
        assert len(out) == 1, out
        return out[0]

    def instances(self, *states):
        """What moto has, by the vendor's own client."""
        filters = [{"Name": "instance-state-name",
                    "Values": list(states) or ["pending", "running", "stopping", "stopped"]}]
        pages = self.ec2.get_paginator("describe_instances").paginate(Filters=filters)
        return [i for page in pages for r in page["Reservations"] for i in r["Instances"]]

    def nothing_left(self):
        """Instances, volumes, interfaces, addresses."""
        assert self.instances() == []
        assert self.ec2.describe_volumes()["Volumes"] == []
        assert self.ec2.describe_network_interfaces()["NetworkInterfaces"] == []
        assert self.ec2.describe_addresses()["Addresses"] == []

    def stop(self):
        self.imds.stop()
        self.proxy.stop()
        self.moto.stop()
