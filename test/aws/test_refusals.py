# SPDX-License-Identifier: Apache-2.0
"""What moto cannot do, golden answers by the proxy: refusals of places, quotas, permissions, eventual
consistency, tokens that do not match, answers that are none."""
import json
import re
import subprocess
import threading
import time

import pytest
import world

BOMB = (b'<?xml version="1.0"?><!DOCTYPE z [<!ENTITY a "aaaaaaaaaaaaaaaaaaaaaaaa">'
        b'<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">'
        b"]><RunInstancesResponse>&c;</RunInstancesResponse>")


def refuse_at(code, type_=None, subnet=None, message="told to", status=400):
    """A rule: RunInstances of this type in this subnet is refused."""
    def rule(e):
        if e.action != "RunInstances" or (type_ and e.form["InstanceType"] != type_) or \
                (subnet and e.form["NetworkInterface.1.SubnetId"] != subnet):
            return None
        return world.error(code, message, status)
    return rule


def tried(aws):
    return [(e.form["InstanceType"], e.form["NetworkInterface.1.SubnetId"])
            for e in aws.proxy.of("RunInstances")]


def three(aws):
    a, b, c = aws.subnets[:3]
    return a, b, c, ["-subnetid", f"{a},{b},{c}", "-instance-types",
                     "m6a.xlarge,m6a.large,r6a.large"]


def test_capacity_then_the_second_subnet(aws):
    a, b, _, flags = three(aws)
    aws.proxy.rules.append(refuse_at("InsufficientInstanceCapacity", subnet=a))
    made = aws.one("create", "podvm-a", "s1", flags=flags)
    assert made["code"] == 0
    assert tried(aws) == [("m6a.large", a), ("m6a.large", b)]
    instance, = aws.instances()
    assert instance["SubnetId"] == b
    first, second = (e.form["ClientToken"] for e in aws.proxy.of("RunInstances"))
    assert first != second and first[:32] == second[:32]
    # Again, as after a crash, with room everywhere by now: the same token answers where it was
    # made, and what the earlier place makes besides goes with the sandbox.
    aws.one("create", "podvm-a", "s1", flags=flags)
    assert aws.one("create", "podvm-a", "s1", flags=flags)["id"] == made["id"]
    aws.one("delete", made["id"], "s1")
    aws.nothing_left()


def test_type_not_in_zone_and_quota_and_full_subnet(aws):
    a, b, c, flags = three(aws)
    aws.proxy.rules += [refuse_at("VcpuLimitExceeded", type_="m6a.large"),
                        refuse_at("InsufficientFreeAddressesInSubnet", subnet=a),
                        refuse_at("Unsupported", subnet=b)]
    made = aws.one("create", "podvm-a", "s1", flags=flags)
    assert made["code"] == 0
    # The quota ends a type everywhere, the full subnet is not tried again.
    assert tried(aws) == [("m6a.large", a), ("r6a.large", a), ("r6a.large", b), ("r6a.large", c)]


def test_no_place(aws):
    a, _, _, flags = three(aws)
    aws.proxy.rules.append(refuse_at("InsufficientInstanceCapacity", message="We do not have "
                                     "sufficient capacity"))
    made = aws.one("create", "podvm-a", "s1", flags=flags)
    assert made["code"] == -28 and made["id"] == ""
    assert len(tried(aws)) == 9
    for words in ("among 9", f"m6a.large in {a}: InsufficientInstanceCapacity",
                  "We do not have sufficient capacity", "req-Insufficient", "-instance-types"):
        assert words in made["error"], made["error"]
    # By name: no other type, but every subnet.
    aws.proxy.exchanges.clear()
    aws.one("create", "podvm-a", "s2", "type=r6a.large", flags=flags)
    assert [t for t, _ in tried(aws)] == ["r6a.large"] * 3


@pytest.mark.parametrize("code, hint", [
    ("InstanceLimitExceeded", "Service Quotas"),
    ("VcpuLimitExceeded", "L-1216C47A"),
    ("InvalidAMIID.NotFound", "-imageid"),
    ("InvalidGroup.NotFound", "-securitygroupids"),
    ("InvalidParameterValue", "told to"),
])
def test_refused_for_good(aws, code, hint):
    aws.proxy.rules.append(refuse_at(code))
    made = aws.one("create", "podvm-a", "s1")
    assert made["code"] < 0 and made["id"] == ""
    assert code in made["error"] and f"req-{code}" in made["error"] and hint in made["error"]
    assert len(tried(aws)) == 1
    assert "sandbox" not in made["error"]


def test_permission_by_name(aws):
    message = ("You are not authorized to perform this operation. User: arn:aws:sts::1:assumed-role/n/i"
               " is not authorized to perform: ec2:CreateTags on resource: arn:aws:ec2:r:1:instance/*"
               " because no identity-based policy allows the ec2:CreateTags action")
    aws.proxy.rules.append(refuse_at("UnauthorizedOperation", message=message, status=403))
    made = aws.one("create", "podvm-a", "s1")
    assert made["code"] == -13
    assert "needs the IAM permission ec2:CreateTags (docs/aws.md)" in made["error"]


def test_permission_by_policy(world_with):
    """moto's own IAM: one action after the other is missing, and named."""
    aws = world_with(policy={"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": ["ec2:DescribeImages", "ec2:DescribeInstances"],
         "Resource": "*"}]})
    made = aws.one("create", "podvm-a", "s1")
    assert made["code"] == -13 and "ec2:RunInstances" in made["error"], made
    assert aws.tool("list") == []


def test_types_may_be_unknown(aws):
    """Without DescribeInstanceTypes a pod that asks for nothing still starts."""
    aws.proxy.rules.append(lambda e: world.error("UnauthorizedOperation", "no", 403)
                           if e.action == "DescribeInstanceTypes" else None)
    flags = ["-instance-types", "m6a.large,m6a.xlarge"]
    assert aws.one("create", "podvm-a", "s1", flags=flags)["code"] == 0
    asks = aws.one("create", "podvm-b", "s2", "vcpus=2", flags=flags)
    assert asks["code"] == -13 and "ec2:DescribeInstanceTypes" in asks["error"]


def test_types_without_snp_are_left_out(aws):
    flags = ["-instance-types", "m5.large,m6a.large,m6a.xlarge"]
    made = aws.one("create", "podvm-a", "s1", "memory=8000", flags=flags)
    assert made["code"] == 0 and tried(aws)[-1][0] == "m6a.large"
    assert aws.one("create", "podvm-b", "s2", "memory=8000", "token=b",
                   flags=[*flags, "-disable-cvm"])["code"] == 0
    assert tried(aws)[-1][0] == "m5.large"
    none = aws.one("create", "podvm-c", "s3", "type=m5.large", flags=flags)
    assert none["code"] == -22 and "do not support AMD SEV-SNP" in none["error"]


def test_not_known_yet(aws):
    """EC2 does not know for a while what it has made, by tag and by id."""
    made = aws.one("create", "podvm-a", "s1", flags=["-use-public-ip"])
    until = time.monotonic() + 1.2

    def unknown(e):
        if time.monotonic() >= until or e.action not in ("DescribeInstances", "TerminateInstances"):
            return None
        if "Filter.1.Name" in e.form:
            return 200, b"<DescribeInstancesResponse><reservationSet/></DescribeInstancesResponse>"
        return world.error("InvalidInstanceID.NotFound", f"The instance ID '{made['id']}' does not exist")

    aws.proxy.rules.append(unknown)
    env = aws.environment(AWS_SETTLE_TIME="3s")
    waited = aws.one("wait", made["id"], "s1", flags=["-use-public-ip"], env=env)
    assert waited["code"] == 0 and len(waited["addresses"]) == 2
    until = time.monotonic() + 1.2
    assert aws.one("delete", made["id"], "s1", env=env)["code"] == 0
    aws.nothing_left()


def test_never_known(aws):
    """What AWS goes on not knowing is gone; who waits for it hears so."""
    assert aws.one("delete", "i-0123456789abcdef0", "s1")["code"] == 0
    waited = aws.one("wait", "i-0123456789abcdef0", "s1")
    assert waited["code"] == -112 and "does not know" in waited["error"]


def test_token_that_does_not_match(aws):
    """The daemon was started with other options since: the instance is found by tag."""
    made = aws.one("create", "podvm-a", "s1")
    again = aws.one("create", "podvm-a", "s1", flags=["-root-volume-size", "99"])
    assert again["code"] == 0 and again["id"] == made["id"]
    assert b"IdempotentParameterMismatch" in aws.proxy.of("RunInstances")[-1].answer
    # Nothing carries the tag any more: AWS's words.
    aws.one("delete", made["id"], "s1")
    third = aws.one("create", "podvm-a", "s1", flags=["-root-volume-size", "99"])
    assert third["code"] < 0 and "IdempotentParameterMismatch" in third["error"]


def test_the_token_of_what_is_terminated(aws):
    made = aws.one("create", "podvm-a", "s1")
    gone = aws.proxy.of("RunInstances")[0].answer
    gone = re.sub(rb"<stateReason>.*?</stateReason>", b"", gone, flags=re.S)
    gone = re.sub(rb"<instanceState>.*?</instanceState>", b"<instanceState><code>48</code><name>"
                  b"terminated</name></instanceState><stateReason><message>Client.UserInitiatedShutdown"
                  b"</message></stateReason>", gone, flags=re.S)
    aws.proxy.rules.append(lambda e: (200, gone) if e.action == "RunInstances" else None)
    again = aws.one("create", "podvm-a", "s1")
    assert again["code"] == -112 and again["id"] == made["id"]
    assert "terminated: Client.UserInitiatedShutdown" in again["error"]


@pytest.mark.parametrize("answer, words", [
    (BOMB, "document type"),
    (b"<RunInstancesResponse><instancesSet><item><instanceId>i-1", "not well-formed XML"),
    (b"<RunInstancesResponse><instancesSet/></RunInstancesResponse>", "no instance"),
    (b"<a><instancesSet><item><instanceId>" + b"i" * 500 + b"</instanceId></item></instancesSet></a>",
     "instanceId"),
    (b"<html>Bad gateway</html>", "no instance"),
    (b"<a>" + b"x" * (10 << 20) + b"</a>", "4194304"),
], ids=["bomb", "half", "empty", "long", "html", "10MB"])
def test_an_answer_that_is_none(aws, answer, words):
    """The instance was made, and its answer is lost: reported with the failure, found by the tag."""
    def after(e):
        return None if e.action != "RunInstances" else (aws.proxy.forward(e), (200, answer))[1]

    aws.proxy.rules.append(after)
    made = aws.one("create", "podvm-a", "s1")
    assert made["code"] < 0 and words in made["error"], made
    instance, *_ = aws.instances()
    assert made["id"] == instance["InstanceId"]
    assert aws.one("delete", made["id"], "s1")["code"] == 0
    aws.nothing_left()


@pytest.mark.parametrize("code, status", [("UnauthorizedOperation", 403), ("InvalidParameterValue", 400)])
def test_a_refusal_after_a_lost_answer(aws, code, status):
    """The first try made it; what is said of the second is no word about the first."""
    def rule(e):
        if e.action != "RunInstances":
            return None
        if len(aws.proxy.of("RunInstances")) == 1:
            aws.proxy.forward(e)
            raise world.Drop
        return world.error(code, status=status)

    aws.proxy.rules.append(rule)
    made = aws.one("create", "podvm-a", "s1")
    instance, = aws.instances()
    assert made["code"] < 0 and code in made["error"] and made["id"] == instance["InstanceId"], made
    assert aws.one("delete", made["id"], "s1")["code"] == 0
    aws.nothing_left()


def test_cancelled_while_aws_works(aws):
    """StopVM during RunInstances: what AWS makes of it is found and told."""
    begun = threading.Event()

    def slow(e):
        if e.action == "RunInstances" and not begun.is_set():
            begun.set()
            time.sleep(0.7)
        return None

    aws.proxy.rules.append(slow)
    tool = subprocess.Popen(aws.command("create", "podvm-a", "s1"),
                            env=aws.environment(AWS_SETTLE_TIME="3s"), stdout=subprocess.PIPE,
                            text=True)
    assert begun.wait(10)
    tool.terminate()
    out, _ = tool.communicate(timeout=20)
    made = json.loads(out)
    instance, = aws.instances()
    assert made["code"] == -125 and made["id"] == instance["InstanceId"], made
    assert len(aws.proxy.of("RunInstances")) == 1


def test_leftovers(aws):
    """Addresses that are in use for a while, interfaces that outlived their instance."""
    made = aws.one("create", "podvm-a", "s1", "external")
    aws.one("wait", made["id"], "s1")
    busy = [2]
    left = aws.ec2.create_network_interface(SubnetId=aws.subnets[0])["NetworkInterface"]

    def rule(e):
        if e.action == "ReleaseAddress" and busy[0] > 0:
            busy[0] -= 1
            return world.error("InvalidIPAddress.InUse", "Address is in use")
        if e.action == "DescribeNetworkInterfaces" and left:
            return 200, (f"<r><networkInterfaceSet><item><networkInterfaceId>{left['NetworkInterfaceId']}"
                         "</networkInterfaceId></item></networkInterfaceSet></r>").encode()
        return None

    def deleted(e):
        if e.action == "DeleteNetworkInterface":
            left.clear()

    aws.proxy.rules.append(rule)
    aws.proxy.after.append(deleted)
    assert aws.one("delete", made["id"], "s1")["code"] == 0
    assert busy == [0]
    aws.nothing_left()


def test_an_address_is_not_known_yet(aws):
    """Neither its allocation, when it is to be associated, nor afterwards where it is, nor that it is there."""
    made = aws.one("create", "podvm-a", "s1", "external")
    late, until = [2], []

    def rule(e):
        if e.action == "AssociateAddress":
            if late[0] > 0:
                late[0] -= 1
                return world.error("InvalidAllocationID.NotFound", "The allocation ID does not exist")
            until.append(time.monotonic() + 1.5)
        if e.action == "DescribeAddresses":
            return 200, b"<r><addressesSet/></r>"
        if e.action == "DescribeInstances" and (not until or time.monotonic() < until[0]):
            status, answer = aws.proxy.forward(e)
            return status, re.sub(rb"<association>.*?</association>", b"", answer, flags=re.S)
        return None

    aws.proxy.rules.append(rule)
    waited = aws.one("wait", made["id"], "s1", env=aws.environment(AWS_SETTLE_TIME="20s"))
    assert waited["code"] == 0 and waited["addresses"], waited
    assert late == [0] and len(aws.proxy.of("AllocateAddress")) == 1
    aws.proxy.rules.clear()
    assert aws.one("delete", made["id"], "s1")["code"] == 0
    aws.nothing_left()


def test_more_leftovers_than_are_read_at_once(aws):
    tags = [{"ResourceType": "elastic-ip", "Tags": [{"Key": "peerpod-sandbox", "Value": "s1"}]}]
    for _ in range(20):
        aws.ec2.allocate_address(Domain="vpc", TagSpecifications=tags)
    assert aws.one("delete", "i-0123456789abcdef0", "s1")["code"] == 0
    aws.nothing_left()


def test_too_much_user_data(aws, tmp_path):
    data = tmp_path / "data"
    data.write_bytes(b"x" * 16385)
    made = aws.one("create", "podvm-a", "s1", f"data={data}")
    assert made["code"] == -7 and "16385" in made["error"] and "16384" in made["error"]
    data.write_bytes(b"\xff" * 16384)
    assert aws.one("create", "podvm-a", "s1", f"data={data}")["code"] == 0


def test_node_without_metadata(aws):
    aws.imds.values = {"/latest/meta-data/placement/region": world.REGION}
    made = aws.one("create", "podvm-a", "s1")
    assert made["code"] < 0 and "-subnetid" in made["error"] and "-securitygroupids" in made["error"]
    assert aws.one("create", "podvm-a", "s1", flags=[
        "-subnetid", aws.subnets[1], "-securitygroupids", aws.group])["code"] == 0


def test_region_from_metadata(aws):
    assert aws.one("create", "podvm-a", "s1",
                   env=aws.environment(AWS_REGION=None, AWS_CONFIG_FILE="/nonexistent"))["code"] == 0
    head = dict(aws.proxy.of("RunInstances")[0].headers)["Authorization"]
    assert f"/{world.REGION}/ec2/aws4_request" in head
