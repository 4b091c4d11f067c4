# SPDX-License-Identifier: Apache-2.0
"""process-user-data run for real: every source, each against a server that checks what it is sent;
failures and retries; what is written, with which modes, and how a reader of the directory sees it.
"""
import base64
import contextlib
import ctypes
import gzip
import hashlib
import http.server
import os
import pathlib
import stat
import struct
import subprocess
import threading
import time

import pytest

PROGRAM = pathlib.Path(os.environ["PEERPOD_BIN"]) / "process-user-data"
SECRET = "s3cr3t-in-user-data"
APF = '{"pod-name": "%s"}\n' % SECRET
TOML = f"""version = "0.1.0"
algorithm = "sha384"
[data]
"aa.toml" = '''
url = "http://kbs.example"
'''
"policy.rego" = "package {SECRET}"
"../../etc/passwd" = "x"
"other.toml" = "x"
"""


def encode(toml):
    return base64.b64encode(gzip.compress(toml.encode())).decode()


def document(files):
    text = "#cloud-config\n\nwrite_files:\n"
    for path, content in files.items():
        text += f"  - path: {path}\n"
        if content is not None:
            text += "    content: |\n"
            text += "".join(f"      {line}\n" for line in content.splitlines())
    return text


FULL = document({
    "/run/peerpod/apf.json": APF,
    "/run/peerpod/auth.json": '{"auths": {}}',
    "/run/peerpod/cdh.toml": "from = 'document'",
    "/run/peerpod/aa.toml": "from = 'document'",
    "/run/peerpod/scratch-space.marker": None,
    "/run/peerpod/initdata": encode(TOML),
    "/etc/passwd": SECRET,
    "/run/peerpod/../../etc/shadow": SECRET,
    "/run/peerpod/policy.rego": SECRET,
    "/run/peerpod/initdata.digest": SECRET,
})


class Server(http.server.ThreadingHTTPServer):
    """Answers by `routes`: (method, path) -> function(handler) -> (status, body)."""

    daemon_threads = True

    def __init__(self, routes):
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes = routes
        self.seen = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def host(self):
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.server.seen.append((self.command, self.path))
        route = self.server.routes.get((self.command, self.path))
        status, body = route(self) if route else (404, b"")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    do_GET = do_PUT = answer

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(routes):
    server = Server(routes)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def with_header(name, value, body):
    def route(handler):
        return (200, body) if handler.headers.get(name) == value else (403, b"wrong header")
    return route


def machine(root, vendor="QEMU", user_data=None, tag=None):
    """A root directory as that of a machine of this manufacturer."""
    dmi = root / "sys/class/dmi/id"
    dmi.mkdir(parents=True, exist_ok=True)
    (dmi / "sys_vendor").write_text(vendor + "\n")
    if tag:
        (dmi / "chassis_asset_tag").write_text(tag + "\n")
    if user_data is not None:
        (root / "media/cidata").mkdir(parents=True, exist_ok=True)
        (root / "media/cidata/user-data").write_bytes(
            user_data.encode() if isinstance(user_data, str) else user_data)
    return root


def command(root, *args, timeout=20, retry="50ms", vendor="None"):
    return [str(PROGRAM), "provision-files", "-root", str(root), "-t", str(timeout),
            "-retry-interval", retry, "-hypervisor-vendor", vendor, *args]


def run(root, *args, **kwargs):
    done = subprocess.run(command(root, *args, **kwargs), capture_output=True, text=True,
                          timeout=60, check=False, env={"PATH": os.environ["PATH"]})
    assert SECRET not in done.stderr + done.stdout, "contents in the log"
    return done


def out(root):
    return root / "run/peerpod"


def check_full(root, done):
    assert done.returncode == 0, done.stderr
    files = {p.name: p for p in out(root).iterdir()}
    assert set(files) == {"apf.json", "auth.json", "cdh.toml", "aa.toml", "scratch-space.marker",
                          "initdata", "initdata.digest", "policy.rego"}
    modes = {name: stat.S_IMODE(p.stat().st_mode) for name, p in files.items()}
    assert modes == {name: 0o600 if name in ("apf.json", "auth.json") else 0o644 for name in files}
    assert files["apf.json"].read_text() == APF
    assert files["cdh.toml"].read_text() == "from = 'document'\n"
    assert files["aa.toml"].read_text() == 'url = "http://kbs.example"\n', "initdata's must win"
    assert files["policy.rego"].read_text() == f"package {SECRET}"
    assert files["scratch-space.marker"].read_text() == ""
    assert files["initdata.digest"].read_text() == hashlib.sha384(TOML.encode()).hexdigest()
    for skipped in ("/etc/passwd", "/run/peerpod/../../etc/shadow", "/run/peerpod/policy.rego",
                    "/run/peerpod/initdata.digest", "../../etc/passwd", "other.toml"):
        assert f"{skipped}" in done.stderr
    assert done.stderr.count("skipped") == 6
    assert not (root / "etc").exists()


def test_file(tmp_path):
    check_full(tmp_path, run(machine(tmp_path, user_data=FULL)))


def test_file_goes_before_the_cloud(tmp_path):
    with serve({}) as server:
        done = run(machine(tmp_path, "Amazon EC2", FULL), "-aws-endpoint", server.url)
        check_full(tmp_path, done)
        assert server.seen == []


AZURE = ("GET", "/metadata/instance/compute/userData?api-version=2021-01-01&format=text")
GCP = ("GET", "/computeMetadata/v1/instance/attributes/user-data")
TOKEN = ("PUT", "/latest/api/token")
LATEST = ("GET", "/latest/user-data")


def b64(text):
    return base64.b64encode(text.encode())


@pytest.mark.parametrize("how", ["cpuid", "tag"])
def test_azure(tmp_path, how):
    with serve({AZURE: with_header("Metadata", "true", b64(FULL))}) as server:
        tag = "7783-7084-3265-9085-8269-3286-77" if how == "tag" else None
        done = run(machine(tmp_path, "Microsoft Corporation", tag=tag),
                   "-azure-endpoint", server.url,
                   vendor="Microsoft Hv" if how == "cpuid" else "None")
        check_full(tmp_path, done)
        assert server.seen == [AZURE]


def test_aws(tmp_path):
    with serve({
        TOKEN: with_header("X-aws-ec2-metadata-token-ttl-seconds", "60", b"t0ken=="),
        LATEST: with_header("X-aws-ec2-metadata-token", "t0ken==", FULL.encode()),
    }) as server:
        check_full(tmp_path, run(machine(tmp_path, "Amazon EC2"), "-aws-endpoint", server.url))
        assert server.seen == [TOKEN, LATEST]


def test_gcp(tmp_path):
    with serve({GCP: with_header("Metadata-Flavor", "Google", b64(FULL))}) as server:
        check_full(tmp_path, run(machine(tmp_path, "Google"), "-gcp-host", server.host))


def test_alibaba(tmp_path):
    with serve({LATEST: lambda h: (200, FULL.encode())}) as server:
        check_full(tmp_path,
                   run(machine(tmp_path, "Alibaba Cloud"), "-alibaba-endpoint", server.url))


def test_endpoints_from_the_environment(tmp_path):
    with serve({LATEST: lambda h: (200, FULL.encode())}) as server:
        machine(tmp_path, "Alibaba Cloud")
        env = {"PATH": os.environ["PATH"], "USER_DATA_ROOT": str(tmp_path),
               "ALIBABA_METADATA_SERVICE_ENDPOINT": server.url,
               "USER_DATA_HYPERVISOR_VENDOR": "None"}
        done = subprocess.run([PROGRAM, "provision-files", "--user-data-fetch-timeout=20"],
                              capture_output=True, text=True, timeout=60, check=False, env=env)
        check_full(tmp_path, done)


def test_retries_until_it_is_there(tmp_path):
    """Not there, an error, a wrong document, half of one, then the right one."""
    replies = [(404, b""), (500, b"x"), (200, b64("#!/bin/sh\n")), (200, b64(FULL)[:1001]),
               (200, b64(FULL))]
    with serve({GCP: lambda h: replies.pop(0)}) as server:
        done = run(machine(tmp_path, "Google"), "-gcp-host", server.host)
        check_full(tmp_path, done)
        assert len(server.seen) == 5
    for words in ("attempt 1 to get user data from gcp failed: GET", "HTTP 404",
                  "no user data yet", "HTTP 500", "must be \"#cloud-config\"",
                  "user data must be base64", "next in 50 ms"):
        assert words in done.stderr


@pytest.mark.parametrize("reply, words", [
    ((404, b""), "HTTP 404"),
    ((500, b""), "HTTP 500"),
    ((301, b""), "HTTP 301"),
    ((200, b"%%%"), "must be base64 here: not base64 at offset 0"),
    ((200, b""), "must be \"#cloud-config\""),
    ((200, b"A" * (6 << 20) + b"A"), "GET"),
    ((200, base64.b64encode(b"A" * ((4 << 20) + 1))), "at most 4194304"),
    ((200, b64("#cloud-config\nruncmd: [ls]")), "line 2: unknown key \"runcmd\""),
])
def test_gives_up_with_the_last_reason(tmp_path, reply, words):
    with serve({GCP: lambda h: reply}) as server:
        start = time.monotonic()
        done = run(machine(tmp_path, "Google"), "-gcp-host", server.host, timeout=1, retry="400ms")
        assert time.monotonic() - start < 15
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "no usable user data in the time given; last attempt" in last and words in last
    assert not out(tmp_path).exists()


def test_aws_token_errors(tmp_path):
    for body, words in ((b"", "not a token"), (b"a\r\nHost: b", "not a token"),
                        (b"a" * 5000, "not a token")):
        with serve({TOKEN: lambda h, b=body: (200, b)}) as server:
            done = run(machine(tmp_path, "Amazon EC2"), "-aws-endpoint", server.url, timeout=1,
                       retry="900ms")
            assert done.returncode == 1 and words in done.stderr
            assert LATEST not in server.seen


def test_service_hangs(tmp_path):
    release = threading.Event()
    with serve({GCP: lambda h: (release.wait(20), (200, b""))[1]}) as server:
        start = time.monotonic()
        done = run(machine(tmp_path, "Google"), "-gcp-host", server.host, timeout=2)
        took = time.monotonic() - start
        release.set()
    assert done.returncode == 1 and 1 < took < 15
    assert "no usable user data in the time given" in done.stderr


def test_nobody_listens(tmp_path):
    with serve({}) as server:
        host = server.host
    done = run(machine(tmp_path, "Google"), "-gcp-host", host, timeout=1)
    assert done.returncode == 1 and "connect" in done.stderr.lower()


def test_config_drive_comes_late(tmp_path):
    """Its appearance is noticed at once, not after a retry interval."""
    with subprocess.Popen(command(machine(tmp_path), retry="30s", timeout=60),
                          stderr=subprocess.PIPE, text=True) as process:
        first = process.stderr.readline()
        assert 'system manufacturer "QEMU"' in first and "/media/cidata/user-data" in first
        start = time.monotonic()
        (tmp_path / "media/cidata").mkdir(parents=True)
        (tmp_path / "media/cidata/part").write_text(FULL)
        (tmp_path / "media/cidata/part").rename(tmp_path / "media/cidata/user-data")
        log = process.communicate(timeout=30)[1]
        assert process.returncode == 0, log
        assert time.monotonic() - start < 10
    assert (out(tmp_path) / "apf.json").read_text() == APF


def test_no_source(tmp_path):
    done = run(machine(tmp_path), timeout=1)
    assert done.returncode == 1
    assert "belong to none of azure, aws, gcp, alibaba" in done.stderr.splitlines()[-1]


def test_cloud_init_was_here(tmp_path):
    """Files are there already and nothing can be fetched: initdata alone is done."""
    out(machine(tmp_path)).mkdir(parents=True)
    (out(tmp_path) / "apf.json").write_text(APF)
    (out(tmp_path) / "initdata").write_text(encode(TOML))
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha384(TOML.encode()).hexdigest()
    assert (out(tmp_path) / "initdata.digest").read_text() == digest
    assert (out(tmp_path) / "policy.rego").read_text() == f"package {SECRET}"


@pytest.mark.parametrize("initdata", ["absent", None, "", "\n"])
def test_empty_initdata(tmp_path, initdata):
    files = {"/run/peerpod/apf.json": APF}
    if initdata != "absent":
        files["/run/peerpod/initdata"] = initdata
    done = run(machine(tmp_path, user_data=document(files)))
    assert done.returncode == 0, done.stderr
    empty = 'algorithm = "sha256"\nversion = "0.1.0"\n\n[data]\n"aa.toml" = ""\n'
    assert (out(tmp_path) / "initdata.digest").read_text() == \
        hashlib.sha256(empty.encode()).hexdigest()
    assert (out(tmp_path) / "aa.toml").read_text() == ""


def test_empty_initdata_leaves_the_document_alone(tmp_path):
    done = run(machine(tmp_path, user_data=document({"/run/peerpod/aa.toml": "mine = 1"})))
    assert done.returncode == 0, done.stderr
    assert (out(tmp_path) / "aa.toml").read_text() == "mine = 1\n"


@pytest.mark.parametrize("initdata, words", [
    ("!!", "TOML line 1"),
    (base64.b64encode(b"plain").decode(), "not of gzip"),
    (encode(TOML.replace("sha384", "md5")), "allowed are sha256, sha384, sha512"),
    (encode(" " * (5 << 20)), "more than 4194304 bytes"),
])
def test_wrong_initdata_is_final(tmp_path, initdata, words):
    """Nothing is written, and there is no second attempt."""
    files = {"/run/peerpod/apf.json": APF, "/run/peerpod/initdata": initdata}
    start = time.monotonic()
    done = run(machine(tmp_path, user_data=document(files)))
    assert done.returncode == 1 and words in done.stderr and "attempt" not in done.stderr
    assert time.monotonic() - start < 15
    assert not out(tmp_path).exists()


def test_cannot_write(tmp_path):
    machine(tmp_path, user_data=FULL)
    (tmp_path / "run").write_text("in the way")
    done = run(tmp_path)
    assert done.returncode == 1 and str(out(tmp_path)) in done.stderr.splitlines()[-1]


IN_CREATE, IN_MOVED_TO, IN_MODIFY = 0x100, 0x80, 0x2


def events(fd):
    """Names and masks of inotify events so far."""
    found, data = [], b""
    with contextlib.suppress(BlockingIOError):
        data = os.read(fd, 65536)
    while data:
        _, mask, _, size = struct.unpack_from("iIII", data)
        found.append((data[16:16 + size].rstrip(b"\0").decode(), mask))
        data = data[16 + size:]
    return found


def test_files_appear_by_rename_and_apf_last(tmp_path):
    libc = ctypes.CDLL(None, use_errno=True)
    out(machine(tmp_path, user_data=FULL)).mkdir(parents=True)
    (out(tmp_path) / "apf.json").write_text("old")
    old = (out(tmp_path) / "apf.json").stat().st_ino
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(fd, str(out(tmp_path)).encode(),
                                      IN_CREATE | IN_MOVED_TO | IN_MODIFY) >= 0
        check_full(tmp_path, run(tmp_path))
        seen = events(fd)
    finally:
        os.close(fd)
    assert (out(tmp_path) / "apf.json").stat().st_ino != old
    moved = [name for name, mask in seen if mask & IN_MOVED_TO]
    assert moved[-1] == "apf.json" and len(moved) == 8
    for name, mask in seen:
        assert mask & IN_MOVED_TO or name.endswith(".new"), "a file changed in place"


def test_umask_and_second_run(tmp_path):
    machine(tmp_path, user_data=FULL)
    for mask in ("0077", "0000"):
        shell = f'umask {mask}; exec "$0" "$@"'
        done = subprocess.run(["sh", "-c", shell, *command(tmp_path)], capture_output=True,
                              text=True, timeout=60, check=False)
        check_full(tmp_path, done)


@pytest.mark.parametrize("args, words", [
    ([], "one command is expected: provision-files"),
    (["provision"], "one command is expected"),
    (["provision-files", "again"], "one command is expected"),
    (["provision-files", "-t", "x"], "'x'"),
    (["provision-files", "-t", "100000"], "86400"),
    (["provision-files", "--nothing"], "nothing"),
    (["provision-files", "-source", "mars"], "azure"),
])
def test_usage_errors(args, words):
    done = subprocess.run([PROGRAM, *args], capture_output=True, text=True, timeout=20,
                          check=False)
    assert done.returncode == 2 and words in done.stderr


@pytest.mark.parametrize("flag", ["-v", "--version", "-version"])
def test_version(flag):
    done = subprocess.run([PROGRAM, flag], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.startswith("process-user-data 0.")


def test_help():
    done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, timeout=20,
                          check=True)
    for word in ("provision-files", "user-data-fetch-timeout", "GCE_METADATA_HOST", "180"):
        assert word in done.stdout
