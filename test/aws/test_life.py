# SPDX-License-Identifier: Apache-2.0
"""Instances on moto, with its signature checks on: made, found, waited for, deleted, and nothing left."""
import base64
import re
import subprocess
import time

import pytest
import world

USER_DATA = "#cloud-config\nwrite_files: []  # +/=& \u00e9\n"
TAGS = ("peerpod-cluster=c-uid", "peerpod-node=node 1/+", "peerpod-boot=b00t", "peerpod-pod=web",
        "peerpod-namespace=default")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "user-data"
    path.write_text(USER_DATA)
    return f"data={path}"


def test_one_instance(aws, data):
    made = aws.one("create", "podvm-web-12345678", "sandbox-1", data, *TAGS,
                   flags=["-securitygroupids", aws.group, "-tags", "team=a b,Name=no"])
    assert re.fullmatch("i-[0-9a-f]{17}", made["id"]), made
    instance, = aws.instances("running")
    assert instance["InstanceId"] == made["id"]
    assert instance["InstanceType"] == "m6a.large"
    assert instance["ImageId"] == aws.image
    assert instance["SubnetId"] == aws.subnets[0]  # this node's, by IMDS
    nic, = instance["NetworkInterfaces"]
    assert [g["GroupId"] for g in nic["Groups"]] == [aws.group]
    assert made["addresses"] == [instance["PrivateIpAddress"]]
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert instance["MetadataOptions"]["HttpPutResponseHopLimit"] == 1
    tags = {t["Key"]: t["Value"] for t in instance["Tags"]}
    assert tags == {"Name": "podvm-web-12345678", "peerpod-sandbox": "sandbox-1", "team": "a b",
                    "peerpod-creator": "cloud-api-adaptor", **dict(t.split("=", 1) for t in TAGS)}
    read = aws.ec2.describe_instance_attribute(InstanceId=made["id"], Attribute="userData")
    assert base64.b64decode(read["UserData"]["Value"]).decode() == USER_DATA
    volume, = aws.ec2.describe_volumes()["Volumes"]
    assert volume["Size"] == 30
    assert {t["Key"]: t["Value"] for t in volume["Tags"]} == tags

    for found in (aws.one("find", "sandbox-1"), aws.one("list", TAGS[0], TAGS[1]),
                  aws.one("wait", made["id"], "sandbox-1")):
        assert {k: found[k] for k in ("id", "name", "sandbox", "boot", "addresses", "gone")} == {
            "id": made["id"], "name": "podvm-web-12345678", "sandbox": "sandbox-1",
            "boot": "b00t", "addresses": made["addresses"], "gone": False}
    assert aws.tool("list", "peerpod-node=other") == []
    assert aws.one("find", "sandbox-2")["code"] == -2

    assert aws.one("delete", made["id"], "sandbox-1")["code"] == 0
    assert aws.one("find", "sandbox-1")["code"] == -2
    assert aws.one("delete", made["id"], "sandbox-1")["code"] == 0  # again
    assert aws.one("wait", made["id"], "sandbox-1")["code"] == -112  # EHOSTDOWN
    aws.nothing_left()


def test_the_same_again(aws):
    """The same request twice is one instance; another place of the same sandbox goes with it."""
    first = aws.one("create", "podvm-a", "s1")
    again = aws.one("create", "podvm-a", "s1")
    assert first["id"] == again["id"]
    # What a repeated create may do that finds room where there was none (create.c).
    other = aws.one("create", "podvm-a", "s1", "type=c6a.large",
                    flags=["-instance-types", "c6a.large"])
    assert other["id"] != first["id"]
    assert len(aws.instances()) == 2
    aws.one("delete", first["id"], "s1")
    aws.nothing_left()


def test_stopped_is_gone(aws):
    made = aws.one("create", "podvm-a", "s1")
    aws.ec2.stop_instances(InstanceIds=[made["id"]])
    assert aws.one("find", "s1")["gone"]
    waited = aws.one("wait", made["id"], "s1")
    assert waited["code"] == -112 and "stopped" in waited["error"]
    assert aws.one("delete", "", "s1")["code"] == 0  # by tag alone
    aws.nothing_left()


def test_external_network(aws):
    made = aws.one("create", "podvm-a", "s1", "external", *TAGS)
    assert made["code"] == 0 and made["addresses"] == []
    waited = aws.one("wait", made["id"], "s1")
    instance, = aws.instances("running")
    assert waited["addresses"] == [instance["PrivateIpAddress"]]
    address, = aws.ec2.describe_addresses()["Addresses"]
    second, = [n for n in instance["NetworkInterfaces"] if n["Attachment"]["DeviceIndex"] == 1]
    assert address["NetworkInterfaceId"] == second["NetworkInterfaceId"]
    assert {t["Key"]: t["Value"] for t in address["Tags"]} == {
        "Name": "podvm-a", "peerpod-sandbox": "s1", "peerpod-creator": "cloud-api-adaptor",
        **dict(t.split("=", 1) for t in TAGS)}
    aws.one("wait", made["id"], "s1")  # again: no second address
    assert len(aws.ec2.describe_addresses()["Addresses"]) == 1
    assert aws.one("delete", made["id"], "s1")["code"] == 0
    aws.nothing_left()


def test_public_address(aws):
    made = aws.one("create", "podvm-a", "s1", flags=["-use-public-ip"])
    instance, = aws.instances("running")
    waited = made if made["addresses"] else aws.one("wait", made["id"], "s1",
                                                    flags=["-use-public-ip"])
    assert waited["addresses"] == [instance["PublicIpAddress"], instance["PrivateIpAddress"]]
    assert aws.one("delete", made["id"], "s1")["code"] == 0
    aws.nothing_left()


def test_launch_template(aws):
    aws.ec2.create_launch_template(LaunchTemplateName="lt1", LaunchTemplateData={
        "ImageId": aws.image, "InstanceType": "c6a.large",
        "NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": aws.subnets[1],
                               "Groups": [aws.group], "DeleteOnTermination": True}]})
    made = aws.one("create", "podvm-a", "s1", flags=["-use-lt", "-aws-lt-name", "lt1"])
    assert made["code"] == 0, made
    instance, = aws.instances("running")
    assert instance["InstanceType"] == "c6a.large"
    assert instance["ImageId"] == aws.image
    sent, = aws.proxy.of("RunInstances")
    assert not any(k.startswith(("ImageId", "InstanceType", "NetworkInterface", "Subnet",
                                 "CpuOptions", "MetadataOptions", "Block")) for k in sent.form)


def template(aws, **data):
    aws.ec2.create_launch_template(LaunchTemplateName="lt1", LaunchTemplateData={
        "NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": aws.subnets[1], "Groups": [aws.group],
                               "DeleteOnTermination": True}], **data})
    return ["-use-lt", "-aws-lt-name", "lt1"]


def sent_type(aws):
    return aws.proxy.of("RunInstances")[-1].form.get("InstanceType")


def test_what_the_template_leaves_open(aws):
    """EC2 would take m1.small, and would want an AMI."""
    made = aws.one("create", "podvm-a", "s1", flags=[*template(aws), "-instance-type", "c6a.xlarge"])
    assert made["code"] == 0, made
    instance, = aws.instances("running")
    assert (instance["InstanceType"], instance["ImageId"]) == ("c6a.xlarge", aws.image)
    assert aws.one("delete", made["id"], "s1")["code"] == 0
    # The AMI of moto keeps its volume; moto leaves the template's interface, whatever it says.
    assert aws.instances() == [] and aws.ec2.describe_volumes()["Volumes"] == []


@pytest.mark.parametrize("words, more, want", [
    (["vcpus=1"], [], "c6a.xlarge"),  # and not -instance-type's default, which is smaller
    (["memory=16000"], ["-instance-types", "m6a.large,r6a.large"], "r6a.large"),
    (["vcpus=1"], ["-instance-types", "m6a.large,r6a.large"], "m6a.large"),
    (["type=c6a.xlarge"], ["-instance-types", "m6a.large"], "c6a.xlarge"),
    (["vcpus=2"], ["-instance-types", "m5.large"], "m5.large"),  # the template is not confidential
])
def test_the_templates_type_is_the_default(aws, words, more, want):
    made = aws.one("create", "podvm-a", "s1", *words,
                   flags=[*template(aws, ImageId=aws.image, InstanceType="c6a.xlarge"), *more])
    assert made["code"] == 0 and sent_type(aws) == want, made


def test_what_the_templates_type_cannot_hold(aws):
    flags = template(aws, ImageId=aws.image, InstanceType="c6a.xlarge",
                     CpuOptions={"AmdSevSnp": "enabled"})
    made = aws.one("create", "podvm-a", "s1", "vcpus=8", flags=flags)
    assert made["code"] == -22 and "the most are 4 vCPUs" in made["error"], made
    made = aws.one("create", "podvm-a", "s1", "vcpus=1", flags=[*flags, "-instance-types", "m5.large"])
    assert sent_type(aws) == "c6a.xlarge", "m5 has no SNP"
    missing = aws.one("create", "podvm-a", "s1", flags=["-use-lt", "-aws-lt-name", "nope"])
    assert missing["code"] < 0 and "-aws-lt-name" in missing["error"], missing


def test_a_template_that_may_not_be_read(aws):
    """Nothing is added to it then."""
    flags = template(aws, ImageId=aws.image, InstanceType="c6a.xlarge")
    aws.proxy.rules.append(lambda e: world.error("UnauthorizedOperation", "no", 403)
                           if e.action == "DescribeLaunchTemplateVersions" else None)
    assert aws.one("create", "podvm-a", "s1", flags=flags)["code"] == 0
    assert sent_type(aws) is None and aws.instances()[0]["InstanceType"] == "c6a.xlarge"


def test_many_at_once(aws):
    """200 pods in parallel, without the proxy, which would be half of the time."""
    env = aws.environment(AWS_ENDPOINT_URL=f"http://127.0.0.1:{aws.moto.port}")
    began = time.monotonic()
    assert aws.tool("life", "200", env=env, timeout=300) == []
    print(f"200 lives: {time.monotonic() - began:.1f} s")
    assert len({i["ClientToken"] for i in aws.instances("terminated")}) == 200
    aws.nothing_left()


def test_facts_are_asked_once(aws):
    """Types, AMI and the node's network are the same for all pods of a process."""
    asked = []
    aws.imds.hook = lambda when, path: asked.append(path) if when == "after" else None
    assert aws.tool("life", "8", flags=["-instance-types", "m6a.large,m6a.xlarge"]) == []
    assert len(aws.proxy.of("RunInstances")) == 8
    assert len(aws.proxy.of("DescribeInstanceTypes")) == len(aws.proxy.of("DescribeImages")) == 1
    assert len([path for path in asked if path.endswith("/subnet-id")]) == 1
    aws.nothing_left()


def test_pages(aws):
    for _ in range(101):  # moto counts reservations
        aws.ec2.run_instances(ImageId=aws.image, MinCount=2, MaxCount=2, InstanceType="m6a.large",
                              TagSpecifications=[{"ResourceType": "instance", "Tags": [
                                  {"Key": "peerpod-node", "Value": "n"}]}])
    listed = aws.tool("list", "peerpod-node=n")
    assert len({i["id"] for i in listed}) == 202
    assert len(aws.proxy.of("DescribeInstances")) == 2


def test_program_says_what_is_wrong(aws):
    """Without an AMI, and with a user-data file over the limit."""
    done = subprocess.run(aws.command("list"), env=aws.environment(PODVM_AMI_ID=None),
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "-imageid" in done.stderr and "PODVM_AMI_ID" in done.stderr
    assert world.REGION not in done.stderr
