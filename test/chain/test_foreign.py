# SPDX-License-Identifier: Apache-2.0
"""Other people's ttrpc libraries as the shim, and as the agent behind the forwarder: what of
kata-contract.md 7 can be said through them (foreign.py). Each client meets each agent. One connection for hours
is in hours_test.py."""
import pathlib
import random
import shutil
import tempfile
import time

import pytest
import ttrpc
from conftest import BIN, wait_for
from edits import NETNS, edited
from foreign import LIBRARIES, NO_CODE, Foreign
from node import AGENT, HEALTH, HYPERVISOR, Node, annotations, create_request
from ttrpc import BODY_MAX, field, frame, message, parse, request, text

AGENT_SOCKET = "/run/kata-containers/agent.sock"
SHIM = [("containerd-namespace-ttrpc", "k8s.io")]
SECOND = 10 ** 9


def need(library):
    if not (BIN / f"foreign-{library}").exists():
        pytest.skip(f"no foreign-{library}: its toolchain or its modules are not here")


@pytest.fixture(params=LIBRARIES)
def client(request):  # pylint: disable=redefined-outer-name
    need(request.param)
    client = Foreign(request.param)
    yield client
    client.stop()


@pytest.fixture(scope="module", params=LIBRARIES)
def pod(request):
    """A pod whose agent is the library: its node, with .library and .agent, the shim's socket."""
    need(request.param)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="pp-"))
    program = directory / "agent"
    shutil.copy(BIN / f"foreign-{request.param}", program)
    node = Node(directory, "-local-agent", f"{program} serve {AGENT_SOCKET}", "-grace-shim-gone", "10m")
    try:
        node.start()
        node.library, node.agent = request.param, node.run_pod()
        yield node
        assert node.stop_vm().code == ttrpc.OK
        node.wait_gone()
    finally:
        node.stop()
        print(node.log())
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def link(client, pod):
    """A connection of the client's to the pod's agent."""
    connection = client.dial(pod.agent)
    yield connection
    client.close(connection)


def check_alive(client, connection):
    answer = client.call(connection, HEALTH, "Check", timeout_ns=30 * SECOND, metadata=SHIM)
    assert answer.code == ttrpc.OK, answer


# -- the agent's socket: a byte pipe, so the agent's library decides --


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 20, BODY_MAX - 100])
def test_payloads_come_back_as_they_were(client, link, size):
    payload = field(3, random.Random(size).randbytes(size)) if size else b""
    answer = client.call(link, AGENT, "Echo", payload)
    assert answer.code == ttrpc.OK, answer
    assert answer.payload == payload


def test_more_than_4_mib_is_refused_and_the_connection_lives(client, link):
    """Go's client refuses it itself; Rust's too."""
    answer = client.call(link, AGENT, "Echo", field(3, bytes(BODY_MAX)))
    assert answer.code not in (ttrpc.OK,), answer
    check_alive(client, link)


def test_metadata_with_repeated_keys(client, link):
    pairs = [("containerd-namespace-ttrpc", "k8s.io"), ("traceparent", "00-0af7-b7ad-01"),
             ("many", "1"), ("many", "2"), ("empty", "")]
    answer = client.call(link, AGENT, "Meta", metadata=pairs)
    lines = text(parse(answer.payload), 1).split("\n")
    assert lines == sorted(f"{k}={v}" for k, v in pairs) + ["timeout=0"]


def test_the_deadline_arrives(client, link):
    sent = 1000 * SECOND
    answer = client.call(link, AGENT, "Meta", timeout_ns=sent)
    left = int(text(parse(answer.payload), 1).rsplit("timeout=", 1)[1])
    assert sent - 30 * SECOND < left <= sent


def test_a_deadline_that_passes(client, link):
    begin = time.monotonic()
    answer = client.call(link, AGENT, "Never", timeout_ns=SECOND // 2)
    assert answer.code == ttrpc.DEADLINE_EXCEEDED, answer
    assert 0.4 < time.monotonic() - begin < 10
    check_alive(client, link)


def test_no_deadline_no_answer(client, link):
    call = client.begin(link, AGENT, "Never", metadata=SHIM)
    for _ in range(5):
        check_alive(client, link)
        time.sleep(0.1)
    assert not client.answered(call)


def cancelled(client, connection):
    return int(text(parse(client.call(connection, AGENT, "Cancelled").payload), 1))


def test_the_shims_end_cancels_what_the_agent_does(client, pod):
    watcher, dying = client.dial(pod.agent), client.dial(pod.agent)
    before = cancelled(client, watcher)
    calls = [client.begin(dying, AGENT, "Never") for _ in range(5)]
    check_alive(client, dying)
    client.close(dying)
    for call in calls:
        assert client.wait(call).code == NO_CODE
    wait_for(lambda: cancelled(client, watcher) >= before + len(calls))
    client.close(watcher)


def test_a_call_given_up_leaves_the_others(client, link):
    """Neither library tells the server: it forgets the stream."""
    first, second = (client.begin(link, AGENT, "Never") for _ in range(2))
    assert client.cancel(first).code == ttrpc.CANCELLED
    check_alive(client, link)
    assert not client.answered(second)


def test_200_in_flight(client, link):
    payloads = [field(1, n + 1) for n in range(200)]
    calls = [client.begin(link, AGENT, "Hold", p) for p in payloads[:199]]
    check_alive(client, link)
    early = [client.answers[c] for c in calls if client.answered(c)]
    assert not early, early
    calls.append(client.begin(link, AGENT, "Hold", payloads[199]))
    for call, payload in zip(calls, payloads):
        answer = client.wait(call)
        assert (answer.code, answer.payload) == (ttrpc.OK, payload)


def test_large_ones_beside_small_ones(client, link):
    big = field(3, bytes(1 << 20))
    calls = [client.begin(link, AGENT, "Echo", big) for _ in range(12)]
    check_alive(client, link)
    assert all(client.wait(c).payload == big for c in calls)


def test_errors_come_as_the_agent_wrote_them(client, link):
    words = "an error, worded by the agent: \N{SNOWMAN}, in\nlines"
    for code in (1, 2, 5, 7, 12, 13, 14):
        answer = client.call(link, AGENT, "Fail", field(1, f"{code} {words}"))
        assert (answer.code, answer.text, answer.payload) == (code, words, b"")
        assert answer.details == f"of {words}".encode()


def test_the_verdicts_are_the_agents(client, pod, link):
    unknown = client.call(link, "future.Service", "X")
    assert unknown.code == (ttrpc.UNIMPLEMENTED if pod.library == "go" else ttrpc.INVALID_ARGUMENT)
    assert "future.Service" in unknown.text
    assert client.call(link, AGENT, "NotYetInvented").code == ttrpc.UNIMPLEMENTED
    garbage = client.call(link, AGENT, "Parse", b"\x0a\xff\xff\xff\xff\x0f")
    assert garbage.code == (ttrpc.INTERNAL if pod.library == "go" else ttrpc.UNKNOWN), garbage
    good = field(1, "text")
    assert client.call(link, AGENT, "Parse", good).payload == good
    check_alive(client, link)


def create_container(size=100):
    linux = field(6, message((1, "pid"), (2, "")))
    oci = field(4, b"r" * size) + field(8, linux) + field(77, "unknown")
    return message((1, "c1"), (2, "c1")) + field(6, oci) + field(99, "later")


@pytest.mark.parametrize("method, payload", [
    ("CreateContainer", create_container()),
    ("CreateContainer", create_container(3 << 20)),
    ("CreateSandbox", message((1, "web-0"), (2, "nameserver 10.0.0.10"), (2, ""), (5, "id")))],
    ids=["container", "large container", "sandbox"])
def test_what_the_forwarder_edits(client, link, method, payload):
    want = parse(edited(frame(1, request(AGENT, method, payload)))[10:])[3][-1]
    answer = client.call(link, AGENT, method, payload, timeout_ns=60 * SECOND)
    assert answer.code == ttrpc.OK, answer
    assert answer.payload == want
    assert method == "CreateSandbox" or NETNS in answer.payload


def test_a_spec_that_grows_over_the_limit(client, link):
    spare = BODY_MAX - len(request(AGENT, "CreateContainer", create_container(BODY_MAX - 1000)))
    payload = create_container(BODY_MAX - 1000 + spare - 5)
    assert len(request(AGENT, "CreateContainer", payload)) == BODY_MAX - 5
    answer = client.call(link, AGENT, "CreateContainer", payload)
    assert answer.code in (ttrpc.INVALID_ARGUMENT, ttrpc.RESOURCE_EXHAUSTED), answer
    check_alive(client, link)


def test_streaming_passes_too(client, pod, link):
    """Nothing of kata's streams. A byte pipe carries it all the same. Rust's server takes the opening
    of a Go client's stream for an empty message, so there the echoes are one late."""
    back = b"19" if (client.library, pod.library) == ("go", "rust") else b"20"
    answer = client.stream(link, AGENT, "EchoStream", 20, field(1, "message"))
    assert (answer.code, answer.payload) == (ttrpc.OK, back), answer
    check_alive(client, link)


def test_half_closed(client, pod):
    connection = client.dial(pod.agent)
    call = client.begin(connection, AGENT, "Echo", field(1, "x" * 100000))
    check_alive(client, connection)
    assert client.wait(call).code == ttrpc.OK
    held = client.begin(connection, AGENT, "Never", timeout_ns=SECOND)
    time.sleep(0.1)
    client.half_close(connection)
    assert client.wait(held).code in (ttrpc.DEADLINE_EXCEEDED, NO_CODE)


def test_connections_come_and_go(client, pod):
    for n in range(40):
        connection = client.dial(pod.agent)
        if n % 2:
            check_alive(client, connection)
        client.close(connection)
    connection = client.dial(pod.agent)
    check_alive(client, connection)
    client.close(connection)


def test_the_rust_runtimes_silent_second_connection(client, pod, link):
    """Opened beside the first, it says nothing and gets nothing; its end, or the first one's, concerns
    no other."""
    with ttrpc.Client(pod.agent) as silent:
        check_alive(client, link)
        assert silent.silent(0.2)
        first = client.dial(pod.agent)
        check_alive(client, first)
        client.close(first)
        assert silent.silent(0.2)
    check_alive(client, link)


# -- hypervisor.sock --


@pytest.fixture(scope="module")
def node():
    node = Node(tempfile.mkdtemp(prefix="pp-"), "-vxlan-min-id", "600000")
    yield node.start()
    node.stop()
    print(node.log())


@pytest.fixture
def hypervisor(client, node):
    connection = client.dial(node.socket)
    yield connection
    client.close(connection)


def check_version(client, connection):
    answer = client.call(connection, HYPERVISOR, "Version", field(1, "0.0.0"))
    assert answer.code == ttrpc.OK and text(parse(answer.payload), 1), answer


def one_call(client, node, method, payload, **more):
    """As the Go shim does it: a connection for each call."""
    connection = client.dial(node.socket)
    answer = client.call(connection, HYPERVISOR, method, payload, **more)
    client.close(connection)
    return answer


def sandbox_id(n):
    return f"{n:064x}"


def test_a_pods_life_with_a_connection_for_each_call(client, node):
    name = sandbox_id(1)
    created = one_call(client, node, "CreateVM", create_request(name), metadata=SHIM)
    assert created.code == ttrpc.OK, created
    agent = text(parse(created.payload), 1)
    again = one_call(client, node, "CreateVM", create_request(name), metadata=SHIM)
    assert again.payload == created.payload
    assert ":" not in agent and len(agent) < 108
    started = one_call(client, node, "StartVM", message((1, name)), timeout_ns=600 * SECOND)
    assert started.code == ttrpc.OK, started
    shim = client.dial(agent)
    check_alive(client, shim)
    # The deadline is nothing to the deletion: StopVM is answered at once.
    assert one_call(client, node, "StopVM", message((1, name)), metadata=SHIM).code == ttrpc.OK
    assert one_call(client, node, "StopVM", message((1, name))).code == ttrpc.OK
    node.wait_gone(name)


def test_a_pods_life_on_one_connection(client, node, hypervisor):
    name = sandbox_id(2)
    created = client.call(hypervisor, HYPERVISOR, "CreateVM", create_request(name))
    assert created.code == ttrpc.OK, created
    started = client.call(hypervisor, HYPERVISOR, "StartVM", message((1, name)),
                          timeout_ns=10 ** 13)
    assert started.code == ttrpc.OK, started
    shim = client.dial(text(parse(created.payload), 1))
    check_alive(client, shim)
    stopped = client.call(hypervisor, HYPERVISOR, "StopVM", message((1, name)), timeout_ns=SECOND)
    assert stopped.code == ttrpc.OK, stopped
    node.wait_gone(name)


def test_stopped_while_it_starts(client, node):
    name = sandbox_id(3)
    assert one_call(client, node, "CreateVM", create_request(name)).code == ttrpc.OK
    connection = client.dial(node.socket)
    start = client.begin(connection, HYPERVISOR, "StartVM", message((1, name)),
                         timeout_ns=600 * SECOND)
    assert one_call(client, node, "StopVM", message((1, name))).code == ttrpc.OK
    assert client.wait(start).code not in (ttrpc.OK, NO_CODE)
    client.close(connection)
    node.wait_gone(name)


def test_the_client_ends_while_it_starts(client, node):
    name = sandbox_id(4)
    assert one_call(client, node, "CreateVM", create_request(name)).code == ttrpc.OK
    connection = client.dial(node.socket)
    start = client.begin(connection, HYPERVISOR, "StartVM", message((1, name)),
                         timeout_ns=600 * SECOND)
    check_version(client, connection)
    client.close(connection)
    assert client.wait(start).code == NO_CODE
    wait_for(lambda: not node.instances(), 15)
    assert one_call(client, node, "StopVM", message((1, name))).code == ttrpc.OK
    node.wait_gone(name)


def test_refusals_name_what_is_wrong(client, node, hypervisor):
    nameless = annotations(**{})
    del nameless["io.kubernetes.cri.sandbox-name"]
    for payload, word in ((create_request("../etc"), "id"), (create_request(""), "id"),
                          (create_request(sandbox_id(5), notes=nameless), "sandbox-name"),
                          (create_request(sandbox_id(5), netns="pod-1"), "networkNamespacePath")):
        answer = client.call(hypervisor, HYPERVISOR, "CreateVM", payload, metadata=SHIM)
        assert answer.code not in (ttrpc.OK, NO_CODE) and word in answer.text, (answer, word)
    unknown = client.call(hypervisor, HYPERVISOR, "StartVM", message((1, sandbox_id(6))))
    assert unknown.code == ttrpc.NOT_FOUND and sandbox_id(6) in unknown.text, unknown
    assert client.call(hypervisor, HYPERVISOR, "StopVM", message((1, sandbox_id(6)))).code == ttrpc.OK
    assert not node.sandboxes()


def test_unknown_garbled_and_too_much(client, hypervisor):
    assert client.call(hypervisor, "no.Service", "X").code == ttrpc.UNIMPLEMENTED
    assert client.call(hypervisor, HYPERVISOR, "X").code == ttrpc.UNIMPLEMENTED
    garbage = client.call(hypervisor, HYPERVISOR, "CreateVM", b"\x0a\xff\xff\xff\xff\x0f")
    assert garbage.code in (ttrpc.INVALID_ARGUMENT, ttrpc.INTERNAL), garbage
    more = field(1, "0.0.0") + field(55, "unknown") + field(1, "1.0.0")
    assert client.call(hypervisor, HYPERVISOR, "Version", more).code == ttrpc.OK
    big = message((1, sandbox_id(7))) + field(
        2, message((1, "k"), (2, "v" * (BODY_MAX - 400))))
    assert client.call(hypervisor, HYPERVISOR, "CreateVM", big).code not in (ttrpc.OK, NO_CODE)
    check_version(client, hypervisor)


def test_200_at_once_and_500_connections(client, node, hypervisor):
    calls = [client.begin(hypervisor, HYPERVISOR, "Version", metadata=SHIM) for _ in range(200)]
    assert all(client.wait(c).code == ttrpc.OK for c in calls)
    for n in range(500):
        connection = client.dial(node.socket)
        if n % 10 == 0:
            check_version(client, connection)
        client.close(connection)
    check_version(client, hypervisor)


def test_streams_are_refused_and_harm_nobody(client, hypervisor):
    """Data frames on a call of ours: an end for that stream, nothing for others."""
    answer = client.stream(hypervisor, HYPERVISOR, "Version", 3, field(1, "0.0.0"))
    assert answer.code != ttrpc.OK or answer.payload != b"3", answer
    check_version(client, hypervisor)


def test_half_closed_behind_a_call(client, node):
    connection = client.dial(node.socket)
    call = client.begin(connection, HYPERVISOR, "Version")
    time.sleep(0.05)
    client.half_close(connection)
    assert client.wait(call).code == ttrpc.OK
