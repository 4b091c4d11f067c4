# SPDX-License-Identifier: Apache-2.0
"""Where the AWS client takes its keys from, with the client as a command (aws_judge).

Three judges: moto with signature checks on, for whatever signs; servers of this test at the real
addresses of IMDS, ECS and EKS (the test has a network of its own), which look at each request; and
botocore, which is asked for the key that it would use with the same environment and files.
"""
import datetime
import http.server
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "aws"))
import judge  # noqa: E402

JUDGE = pathlib.Path(os.environ["PEERPOD_BIN"]) / "aws_judge"
CORPUS = pathlib.Path(os.environ.get("PEERPOD_CORPUS") or
                      pathlib.Path(os.environ["PEERPOD_SOURCE"]).parent / "shared" / "corpus")
IMDS, ECS, EKS = "169.254.169.254", "169.254.170.2", "169.254.170.23"
SECRET = "hush"  # in every secret of this test, and so in no log line
POD_TOKEN = "pod-token." + SECRET
WEB_TOKEN = "web-token." + SECRET
ROLE = "arn:aws:iam::123456789012:role/vmrole"


def key_json(name, **more):
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=6)
    return json.dumps({"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": name,
                       "SecretAccessKey": SECRET, "Token": SECRET + "-token",
                       "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"), **more})


def sts_xml(action, name):
    return (f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>'
            f"<Credentials><AccessKeyId>{name}</AccessKeyId><SecretAccessKey>{SECRET}"
            f"</SecretAccessKey><SessionToken>{SECRET}/+=</SessionToken>"
            "<Expiration>2099-01-01T00:00:00.123456Z</Expiration></Credentials>"
            f"</{action}Result></{action}Response>")


class Servers:
    """One handler behind all addresses; `seen` holds (address, method, path, headers, body)."""

    def __init__(self):
        self.seen = []
        self.answers = {}  # (address, method, path) -> (status, text) or a function of the request
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                address = self.server.server_address[0]
                request = (address, self.command, self.path, self.headers, body)
                owner.seen.append(request)
                status, text = owner.reply(request)
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = answer

            def log_message(self, *_):
                pass

        self.all = [http.server.ThreadingHTTPServer((address, port), Handler)
                    for address, port in ((IMDS, 80), (ECS, 80), (EKS, 80), ("127.0.0.1", 0))]
        self.port = self.all[3].server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        for server in self.all:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05},
                             daemon=True).start()

    def reply(self, request):
        address, method, path, headers, body = request
        answer = self.answers.get((address, method, path))
        if callable(answer):
            return answer(request)
        if answer:
            return answer
        if address == IMDS:
            return self.imds(method, path, headers)
        if address in (ECS, EKS):
            return 200, key_json("ASIA" + {ECS: "ECS", EKS: "EKS"}[address])
        form = dict(urllib.parse.parse_qsl(body))
        if form.get("Action") == "AssumeRoleWithWebIdentity":
            return 200, sts_xml("AssumeRoleWithWebIdentity", "ASIAWEB")
        if form.get("Action") == "AssumeRole":
            return 200, sts_xml("AssumeRole", "ASIAROLE")
        return 200, ("<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>"
                     f"{signer(request)}</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>")

    def imds(self, method, path, headers):
        """As the real one with version 2 required."""
        if method == "PUT" and path == "/latest/api/token":
            ttl = int(headers["X-aws-ec2-metadata-token-ttl-seconds"])
            assert 1 <= ttl <= 21600 and "X-Forwarded-For" not in headers
            return 200, "imds-" + SECRET
        if headers.get("X-aws-ec2-metadata-token") != "imds-" + SECRET:
            return 401, "no token"
        base = "/latest/meta-data/"
        return {base + "iam/security-credentials/": (200, "node-role"),
                base + "iam/security-credentials/node-role": (200, key_json("ASIANODE")),
                base + "placement/region": (200, "eu-node-1")}.get(path, (404, "no such thing"))

    def close(self):
        for server in self.all:
            server.shutdown()
            server.server_close()


def signer(request):
    """The access key id that signed it."""
    value = request[3].get("Authorization", "")
    return value.split("Credential=")[1].split("/")[0] if "Credential=" in value else ""


@pytest.fixture(scope="module", autouse=True)
def addresses():
    for address in (IMDS, ECS, EKS):
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)


@pytest.fixture(scope="module")
def all_servers(addresses):
    s = Servers()
    yield s
    s.close()


@pytest.fixture
def servers(all_servers):
    all_servers.seen.clear()
    all_servers.answers.clear()
    yield all_servers
    for _, method, _, _, body in all_servers.seen:
        if method == "POST" and importlib.util.find_spec("moto"):
            judge.round_trip(body, "sts")


@pytest.fixture(scope="module", autouse=True)
def silence(tmp_path_factory):
    """A client whose IMDS takes connections and never answers; it works while other tests run."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        env = {"HOME": str(tmp_path_factory.mktemp("silence")), "AWS_REGION": "eu-x-1"}
        begun = time.monotonic()
        client = subprocess.Popen(
            [str(JUDGE), "-aws-metadata-endpoint", f"http://127.0.0.1:{listener.getsockname()[1]}"],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        yield client, begun
        client.kill()
        client.wait()


@pytest.fixture
def run(tmp_path):
    """Runs the client in an environment of its own; files: name -> text, below tmp_path."""
    def call(*options, files=None, **env):
        for name, text in (files or {}).items():
            (tmp_path / name).write_text(text)
        full = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path),
                "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
                "AWS_CONFIG_FILE": str(tmp_path / "config"),
                **{k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS")},
                **{k: v.format(tmp=tmp_path) for k, v in env.items()}}
        done = subprocess.run([str(JUDGE), *options], env=full, capture_output=True, text=True,
                              timeout=30)
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
        assert "Signature=" not in done.stderr
        return json.loads(done.stdout)

    call.tmp = tmp_path
    return call


# -- moto --

class Moto:
    def __init__(self, url):
        import boto3
        self.url = url
        clients = {name: boto3.client(name, endpoint_url=url, region_name="us-east-1",
                                      aws_access_key_id="a", aws_secret_access_key="b")
                   for name in ("iam", "sts")}
        iam = clients["iam"]
        policy = json.dumps({"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "*", "Resource": "*"}]})
        iam.create_user(UserName="tester")
        iam.put_user_policy(UserName="tester", PolicyName="all", PolicyDocument=policy)
        iam.create_role(RoleName="vmrole", AssumeRolePolicyDocument=policy)
        iam.put_role_policy(RoleName="vmrole", PolicyName="all", PolicyDocument=policy)
        key = iam.create_access_key(UserName="tester")["AccessKey"]
        self.id, self.secret = key["AccessKeyId"], key["SecretAccessKey"]
        self.session = clients["sts"].assume_role(RoleArn=ROLE, RoleSessionName="given")[
            "Credentials"]
        self.check(True)

    def check(self, on):
        request = urllib.request.Request(self.url + "/moto-api/reset-auth", method="POST",
                                         data=b"0" if on else b"inf",
                                         headers={"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=10).read()


@pytest.fixture(scope="module")
def moto():
    pytest.importorskip("moto")
    from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield Moto(f"http://{host}:{port}")
    server.stop()


def test_static_key(run, moto):
    env = {"AWS_ENDPOINT_URL": moto.url, "AWS_REGION": "us-east-2", "AWS_ACCESS_KEY_ID": moto.id}
    good = run(AWS_SECRET_ACCESS_KEY=moto.secret, **env)
    assert good["r"] == 0 and good["arn"] == "arn:aws:iam::123456789012:user/tester"
    bad = run(AWS_SECRET_ACCESS_KEY=moto.secret + "x", **env)
    assert bad["r"] == -13 and bad["code"] == "SignatureDoesNotMatch"
    # Flags are stronger than the environment.
    assert run("-aws-secret-key", moto.secret, AWS_SECRET_ACCESS_KEY="x", **env)["r"] == 0


def test_session_token(run, moto):
    s = moto.session
    env = {"AWS_ENDPOINT_URL": moto.url, "AWS_REGION": "us-east-2",
           "AWS_ACCESS_KEY_ID": s["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": s["SecretAccessKey"]}
    assert run(AWS_SESSION_TOKEN=s["SessionToken"], **env)["arn"].endswith("/vmrole/given")
    assert run(AWS_SESSION_TOKEN="another", **env)["r"] == -13


def test_profiles(run, moto):
    files = {"credentials": f"[default]\naws_access_key_id=AKIDNONE\naws_secret_access_key=x\n\n"
                            f"[ours]\naws_access_key_id = {moto.id}\n"
                            f"aws_secret_access_key = {moto.secret}  # a comment\n",
             "config": "[profile ours]\nregion = eu-ours-1\ns3 =\n  max_queue_size = 1000\n"}
    env = {"AWS_ENDPOINT_URL": moto.url}
    for done in (run("-aws-profile", "ours", files=files, **env),
                 run(AWS_PROFILE="ours", **env), run(AWS_DEFAULT_PROFILE="ours", **env),
                 run("-aws-profile", "ours", AWS_PROFILE="default", **env)):
        assert done["r"] == 0 and done["source"] == "profile ours"
        assert done["region"] == "eu-ours-1"
    assert run(AWS_REGION="us-east-2", **env)["code"] == "InvalidClientTokenId"  # [default]


def test_role_of_a_profile(run, moto):
    files = {"credentials": f"[base]\naws_access_key_id={moto.id}\naws_secret_access_key="
                            f"{moto.secret}\n",
             "config": f"[profile r1]\nrole_arn={ROLE}\nsource_profile=base\n"
                       f"role_session_name=one\nexternal_id=e1\n"
                       f"[profile r2]\nrole_arn={ROLE}\nsource_profile=r1\n"}
    env = {"AWS_ENDPOINT_URL": moto.url, "AWS_REGION": "us-east-2"}
    assert run("-aws-profile", "r1", files=files, **env)["arn"].endswith(":assumed-role/vmrole/one")
    two = run("-aws-profile", "r2", **env)
    assert ":assumed-role/vmrole/peerpod-" in two["arn"], two


def test_web_identity_with_moto(run, moto):
    moto.check(False)  # its checks refuse what has no signature
    try:
        done = run(files={"token": WEB_TOKEN + "\n"}, AWS_ENDPOINT_URL=moto.url,
                   AWS_REGION="us-east-2", AWS_ROLE_ARN=ROLE, AWS_ROLE_SESSION_NAME="irsa",
                   AWS_WEB_IDENTITY_TOKEN_FILE="{tmp}/token")
    finally:
        moto.check(True)
    assert done["r"] == 0 and done["arn"].endswith(":assumed-role/vmrole/irsa")


def test_imds_of_moto(run, moto):
    done = run("-aws-metadata-endpoint", moto.url, "-aws-region", "us-east-2",
               AWS_ENDPOINT_URL=moto.url)
    assert done["source"] == "the node's role (IMDS)"
    assert done["r"] == -13  # its key "test-key" is nobody's


# -- the requests of each source --

def recorded(name, scenario):
    path = CORPUS / "recordings" / name
    if not path.exists():
        pytest.skip(f"no {path} (PEERPOD_CORPUS)")
    return [r for r in map(json.loads, path.read_text().splitlines())
            if r["scenario"].startswith(scenario)]


def test_web_identity(run, servers):
    env = {"AWS_ENDPOINT_URL": servers.url, "AWS_REGION": "us-east-2", "AWS_ROLE_ARN": ROLE,
           "AWS_WEB_IDENTITY_TOKEN_FILE": "{tmp}/token"}
    done = run(files={"token": WEB_TOKEN}, AWS_ROLE_SESSION_NAME="caa", **env)
    assert done["r"] == 0 and done["arn"] == "ASIAWEB"
    assert done["source"] == "the web identity token of AWS_WEB_IDENTITY_TOKEN_FILE"
    _, method, path, headers, body = servers.seen[0]
    theirs = recorded("aws-credentials.jsonl", "sts.AssumeRoleWithWebIdentity")[0]
    assert (method, path) == (theirs["method"], theirs["path"])
    assert "Authorization" not in headers
    assert headers["Content-Type"] == dict(theirs["headers"])["content-type"]
    form = urllib.parse.parse_qs(theirs["body"], strict_parsing=True)
    form["WebIdentityToken"] = [WEB_TOKEN]
    assert urllib.parse.parse_qs(body, strict_parsing=True) == form
    assert servers.seen[1][3]["X-Amz-Security-Token"] == SECRET + "/+="


def test_assume_role(run, servers):
    theirs = recorded("aws-credentials.jsonl", "sts.AssumeRole")
    theirs = urllib.parse.parse_qs(next(t["body"] for t in theirs if t["scenario"] == "sts.AssumeRole"))
    done = run("-aws-profile", "named", AWS_ENDPOINT_URL=servers.url, AWS_REGION="us-east-2", files={
        "config": f"[profile named]\nrole_arn = {ROLE}\nsource_profile = base\nexternal_id = ext-1\n"
                  "role_session_name = caa-session\n[profile base]\n" + KEY.format("AKIDBASE")})
    assert done["r"] == 0 and done["arn"] == "ASIAROLE"
    assert urllib.parse.parse_qs(servers.seen[0][4], strict_parsing=True) == theirs
    assert signer(servers.seen[0]) == "AKIDBASE"
    assert urllib.parse.parse_qs(servers.seen[1][4]) == urllib.parse.parse_qs(
        recorded("aws-credentials.jsonl", "sts.GetCallerIdentity")[0]["body"])


def test_pod_identity(run, servers):
    env = {"AWS_ENDPOINT_URL": servers.url, "AWS_REGION": "us-east-2",
           "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{EKS}/v1/credentials"}
    done = run(files={"token": POD_TOKEN}, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE="{tmp}/token",
               AWS_CONTAINER_AUTHORIZATION_TOKEN="weaker", **env)
    assert done["arn"] == "ASIAEKS"
    assert done["source"] == "the pod's identity (AWS_CONTAINER_CREDENTIALS_FULL_URI)"
    address, method, path, headers, _ = servers.seen[0]
    theirs = recorded("aws-imds.jsonl", "container credentials")[0]
    assert (address, method, path) == (EKS, theirs["method"], theirs["path"])
    assert headers["Authorization"] == POD_TOKEN
    assert "Authorization" in dict(theirs["headers"])


def test_ecs(run, servers):
    env = {"AWS_ENDPOINT_URL": servers.url, "AWS_REGION": "us-east-2",
           "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/uuid"}
    assert run(AWS_CONTAINER_AUTHORIZATION_TOKEN=POD_TOKEN, **env)["arn"] == "ASIAECS"
    address, method, path, headers, _ = servers.seen[0]
    assert (address, method, path) == (ECS, "GET", "/v2/credentials/uuid")
    assert headers["Authorization"] == POD_TOKEN
    assert run(**env)["r"] == 0
    assert "Authorization" not in servers.seen[2][3]


def test_node_role_and_region(run, servers):
    done = run(AWS_ENDPOINT_URL=servers.url, HTTP_PROXY="http://127.0.0.1:1",
               http_proxy="http://127.0.0.1:1", NO_PROXY="127.0.0.1")
    assert done["arn"] == "ASIANODE" and done["region"] == "eu-node-1"
    theirs = [(r["method"], r["path"]) for r in
              recorded("aws-imds.jsonl", "IMDSv2 credentials (canned server")]
    ours = [(m, p) for a, m, p, _, _ in servers.seen if a == IMDS and "placement" not in p]
    assert [x[1].replace("node-role", "") for x in ours] == \
        [x[1].replace("node-role", "") for x in theirs] and len(ours) == 3  # the token is kept
    assert servers.seen[-1][3]["X-Amz-Security-Token"] == SECRET + "-token"


def test_imds_token_is_renewed(run, servers):
    tokens = iter(["first-" + SECRET, "imds-" + SECRET, "none"])
    servers.answers[(IMDS, "PUT", "/latest/api/token")] = lambda _: (200, next(tokens))
    assert run(AWS_ENDPOINT_URL=servers.url)["arn"] == "ASIANODE"


def test_tries_of_the_metadata_service(run, servers):
    bad = iter([(503, "busy"), (200, "imds-" + SECRET)])
    servers.answers[(IMDS, "PUT", "/latest/api/token")] = lambda _: next(bad)
    assert run(AWS_ENDPOINT_URL=servers.url)["arn"] == "ASIANODE"


# -- the order of the SDKs --

STATIC = {"AWS_ACCESS_KEY_ID": "AKIDENV", "AWS_SECRET_ACCESS_KEY": SECRET}
WEB = {"AWS_WEB_IDENTITY_TOKEN_FILE": "{tmp}/token", "AWS_ROLE_ARN": ROLE}
POD = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://{EKS}/v1/credentials",
       "AWS_CONTAINER_AUTHORIZATION_TOKEN": POD_TOKEN}
TASK = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/x"}
KEY = "aws_access_key_id = {0}\naws_secret_access_key = " + SECRET + "\n"
DEFAULT_KEY = {"credentials": "[default]\n" + KEY.format("AKIDFILE")}
CONFIG_KEY = {"config": "[default]\n" + KEY.format("AKIDCONFIG") + "[profile named]\n" +
                        KEY.format("AKIDNAMED")}
REGION_ONLY = {"config": "[default]\nregion = eu-x-1\n"}
ROLE_PROFILE = {"config": f"[profile named]\nrole_arn = {ROLE}\nsource_profile = base\n"
                          "[profile base]\n" + KEY.format("AKIDBASE")}
WEB_PROFILE = {"config": f"[default]\nrole_arn = {ROLE}\nweb_identity_token_file = TMP/token\n"}

ORDER = [
    (STATIC | WEB | POD | TASK, DEFAULT_KEY, "AKIDENV"),
    (WEB | POD | TASK, DEFAULT_KEY, "ASIAWEB"),
    (WEB | {"AWS_PROFILE": "named"}, CONFIG_KEY, "ASIAWEB"),
    (POD | TASK, DEFAULT_KEY | CONFIG_KEY, "AKIDFILE"),
    (POD | TASK, CONFIG_KEY, "AKIDCONFIG"),
    (POD | {"AWS_PROFILE": "named"}, DEFAULT_KEY | CONFIG_KEY, "AKIDNAMED"),
    ({"AWS_PROFILE": "named"}, ROLE_PROFILE, "ASIAROLE"),
    (POD, WEB_PROFILE, "ASIAWEB"),
    (POD | TASK, REGION_ONLY, "ASIAECS"),
    (POD, REGION_ONLY, "ASIAEKS"),
    ({}, REGION_ONLY, "ASIANODE"),
    ({}, {}, "ASIANODE"),
    # Of two files the credentials one wins.
    ({}, {"credentials": "[default]\n" + KEY.format("AKIDFILE") + "[profile odd]\na=b\n",
          "config": "# c\n; c\n[default]\n" + KEY.format("AKIDCONFIG")}, "AKIDFILE"),
]


def botocores_choice(env, tmp_path, url):
    import botocore.session
    old = dict(os.environ)
    os.environ.update({k: v.format(tmp=tmp_path) for k, v in env.items()},
                      AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "credentials"),
                      AWS_CONFIG_FILE=str(tmp_path / "config"), AWS_ENDPOINT_URL=url,
                      AWS_DEFAULT_REGION="eu-x-1")
    try:
        return botocore.session.Session().get_credentials().get_frozen_credentials().access_key
    finally:
        os.environ.clear()
        os.environ.update(old)


@pytest.mark.parametrize("case", range(len(ORDER)))
def test_order(run, servers, case):
    env, files, want = ORDER[case]
    pytest.importorskip("botocore")
    files = {"token": WEB_TOKEN} | {k: v.replace("TMP", str(run.tmp)) for k, v in files.items()}
    done = run(files=files, AWS_ENDPOINT_URL=servers.url, AWS_REGION="eu-x-1", **env)
    assert done["r"] == 0, done
    assert done["arn"] == want
    assert botocores_choice(env, run.tmp, servers.url) == want


def test_later_values_win_within_a_file(run, servers):
    """As in Go's SDK; botocore refuses such a file."""
    text = "".join(f"[{name}]\n" + KEY.format(key) for name, key in
                   (("default", "AKID1"), ("x", "AKIDX"), ("default", "AKID2")))
    done = run(files={"credentials": text}, AWS_ENDPOINT_URL=servers.url, AWS_REGION="eu-x-1")
    assert done["arn"] == "AKID2"


def test_half_a_key_is_none(run, servers):
    """As in Go's SDK, and with a warning; botocore gives up."""
    done = run("-aws-access-key-id", "AKIDHALF", AWS_ENDPOINT_URL=servers.url, AWS_REGION="eu-x-1",
               **POD)
    assert done["arn"] == "ASIAEKS"


def test_the_options_profile_beats_the_web_identity(run, servers):
    """As Go's SDK has it for a profile that the program names."""
    done = run("-aws-profile", "named", files={"token": WEB_TOKEN} | CONFIG_KEY,
               AWS_ENDPOINT_URL=servers.url, AWS_REGION="eu-x-1", **WEB)
    assert done["arn"] == "AKIDNAMED"


# -- what goes wrong --

WRONG = {
    "no role on the node": (
        {(IMDS, "GET", "/latest/meta-data/iam/security-credentials/"): (404, "")}, {}, {},
        -13, "no access key (-aws-access-key-id), profile, web identity or pod identity is set, "
             "and the node's role does not help: the node has no IAM role"),
    "a role that may not be assumed": (
        {(IMDS, "GET", "/latest/meta-data/iam/security-credentials/node-role"):
         (200, '{"Code": "AssumeRoleUnauthorizedAccess", "Message": "EC2 cannot assume"}')}, {}, {},
        -13, "AssumeRoleUnauthorizedAccess: EC2 cannot assume"),
    "no metadata service": (
        {(IMDS, "PUT", "/latest/api/token"): (403, "")}, {}, {},
        -121, "gives no token (HTTP 403)"),
    "metadata switched off": ({}, {"AWS_EC2_METADATA_DISABLED": "true"}, {},
                              -19, "AWS_EC2_METADATA_DISABLED is set"),
    "half a web identity": ({}, {"AWS_WEB_IDENTITY_TOKEN_FILE": "/x"}, {},
                            -13, "AWS_WEB_IDENTITY_TOKEN_FILE is set, AWS_ROLE_ARN is not"),
    "no token file": ({}, WEB | {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent/t"}, {},
                      -2, "/nonexistent/t"),
    "STS refuses": (
        {("127.0.0.1", "POST", "/"): (403, "<ErrorResponse><Error><Code>AccessDenied</Code>"
                                      "<Message>Not authorized to perform "
                                      "sts:AssumeRoleWithWebIdentity</Message></Error>"
                                      "</ErrorResponse>")}, WEB, {"token": WEB_TOKEN},
        -13, f"role {ROLE}: AssumeRoleWithWebIdentity: AccessDenied: Not authorized to perform "
             "sts:AssumeRoleWithWebIdentity; the role's trust policy has to name this service account"),
    "STS does not know the cluster": (
        {("127.0.0.1", "POST", "/"): (400, "<ErrorResponse><Error><Code>InvalidIdentityToken</Code>"
                                      "<Message>No OpenIDConnect provider found</Message></Error>"
                                      "<RequestId>req-9</RequestId></ErrorResponse>")},
        WEB, {"token": WEB_TOKEN}, -121, "No OpenIDConnect provider found (request req-9); "
        "the cluster's OIDC provider has to be known to IAM"),
    "STS answers nonsense": ({("127.0.0.1", "POST", "/"): (200, "<x/>")}, WEB,
                             {"token": WEB_TOKEN}, -71, "the answer holds no credentials"),
    "a foreign endpoint": ({}, POD | {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://192.0.2.1/x"},
                           {}, -13, "must be https, or http to this machine"),
    "a foreign endpoint in disguise": (
        {}, POD | {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1@192.0.2.1/x"},
        {}, -13, "must be https, or http to this machine"),
    "the endpoint refuses": ({(EKS, "GET", "/v1/credentials"): (400, '{"message": "no pod"}')}, POD,
                             {}, -13, 'HTTP 400: {"message": "no pod"}'),
    "the endpoint answers nonsense": ({(EKS, "GET", "/v1/credentials"): (200, "[1,")}, POD, {},
                                      -22, "not valid JSON"),
    "a key with a line break": (
        {(EKS, "GET", "/v1/credentials"): (200, key_json("ASIA\r\nX: y"))}, POD, {},
        -22, "missing or malformed"),
    "an endless answer": ({(EKS, "GET", "/v1/credentials"): (200, " " * 100000)}, POD, {},
                          -27, "exceeds 65536 bytes"),
    "a bad date": ({(EKS, "GET", "/v1/credentials"): (200, key_json("A", Expiration="soon"))}, POD,
                   {}, -22, "the expiration 'soon' is no RFC 3339 time"),
    "no such profile": ({}, {"AWS_PROFILE": "nobody"}, DEFAULT_KEY,
                        -2, "profile nobody: there is no such profile"),
    "a program": ({}, {}, {"config": "[default]\ncredential_process = /bin/true\n"},
                  -95, "profile default: credential_process is not supported"),
    "SSO": ({}, {}, {"config": "[default]\nsso_session = x\n"}, -95, "sso_session is not supported"),
    "MFA": ({}, {}, {"config": f"[default]\nrole_arn = {ROLE}\nmfa_serial = x\n"
                               "source_profile = default\n"}, -95, "cannot ask for a code"),
    "profiles in a circle": (
        {}, {}, {"config": f"[default]\nrole_arn = {ROLE}\nsource_profile = b\n"
                           f"[profile b]\nrole_arn = {ROLE}\nsource_profile = default\n"},
        -40, "more than 5 profiles in a row"),
    "half a section": ({}, {}, {"config": "[default]\n[profile x\n"},
                       -22, "line 2: a section without ']'"),
    "no text": ({}, {}, {"credentials": "[default]\0"}, -22, "this is not a text file"),
    "an odd region": ({}, STATIC | {"AWS_REGION": "us-east-1.evil.test/"}, {},
                      -22, "the AWS region 'us-east-1.evil.test/' is not of the form"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong(run, servers, name):
    answers, env, files, r, words = WRONG[name]
    servers.answers.update(answers)
    done = run(files=files, AWS_ENDPOINT_URL=servers.url, **({"AWS_REGION": "eu-x-1"} | env))
    assert done["r"] == r and words in done["text"], done
    assert not any(s[0] == "127.0.0.1" and "GetCallerIdentity" in s[4] for s in servers.seen)


def test_nothing_answers_at_all(silence):
    """Bounded, and with the hint about the hop limit."""
    client, begun = silence
    done = json.loads(client.communicate(timeout=30)[0])
    assert done["r"] == -110 and "hop limit of 2" in done["text"], done
    assert time.monotonic() - begun < 30
