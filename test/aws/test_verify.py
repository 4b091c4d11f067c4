# SPDX-License-Identifier: Apache-2.0
"""`peerpodctl verify aws`: what it says of a good node, and of each thing that can be wrong."""
import json
import re
import subprocess

import pytest
import world

NODE_IP = "172.31.7.7"


def verify(aws, *flags, env=None, code=None):
    done = subprocess.run([world.BIN / "peerpodctl", "verify", "aws", "-o", "json", *flags],
                          env=env or aws.environment(), capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode in (0, 1), done.stderr
    found = [(o["result"], o["what"], o["text"]) for o in json.loads(done.stdout)]
    assert done.returncode == any(result == "bad" for result, _, _ in found), found
    if code is not None:
        assert done.returncode == code, found
    for _, _, text in found:
        assert aws.user_key[1] not in text
    return found


def bad(found):
    return [(what, text) for result, what, text in found if result == "bad"]


@pytest.fixture
def node(aws):
    """On EC2, with the ports open."""
    aws.imds.values["/latest/meta-data/local-ipv4"] = NODE_IP
    aws.ec2.authorize_security_group_ingress(GroupId=aws.group, IpPermissions=[
        {"IpProtocol": "tcp", "FromPort": 15150, "ToPort": 15150,
         "UserIdGroupPairs": [{"GroupId": aws.group}]},
        {"IpProtocol": "udp", "FromPort": 4000, "ToPort": 5000,
         "IpRanges": [{"CidrIp": "172.31.0.0/16"}]}])
    return aws


def test_a_good_node(node):
    found = verify(node, "-instance-types", "m6a.large,m6a.xlarge", code=0)
    said = {what: text for result, what, text in found if result == "ok"}
    assert said.keys() == {"identity", "image", "instance type", "subnet", "security groups",
                           "RunInstances", "TerminateInstances", "DescribeInstances"}, found
    assert "user/peerpod" in said["identity"] and world.REGION in said["identity"]
    assert NODE_IP in said["security groups"]
    assert {e.action for e in node.proxy.exchanges} == {
        "GetCallerIdentity", "DescribeImages", "DescribeInstanceTypes", "DescribeSubnets",
        "DescribeSecurityGroups", "RunInstances", "TerminateInstances", "DescribeInstances",
        "GetServiceQuota"}
    assert all(e.form["DryRun"] == "true" for action in ("RunInstances", "TerminateInstances")
               for e in node.proxy.of(action))
    node.nothing_left()


def test_types(node):
    found = bad(verify(node, "-instance-types", "m5.large,m6a.large,nope.large", code=1))
    assert [t.split()[0] for _, t in found] == ["m5.large", "nope.large"], found
    assert "SEV-SNP" in found[0][1] and "not known in this region" in found[1][1]
    assert verify(node, "-disable-cvm", "-instance-types", "m5.large", code=0)


def test_images(node):
    (what, text), = bad(verify(node, "-imageid", "ami-00000000", code=1))[:1]
    assert what == "image" and "-imageid" in text
    node.proxy.rules.append(lambda e: (200, f"""<r><imagesSet><item><imageId>{node.image}</imageId>
        <imageState>available</imageState><architecture>x86_64</architecture><bootMode>legacy-bios</bootMode>
        <rootDeviceName>/dev/xvda</rootDeviceName></item></imagesSet></r>""".encode())
        if e.action == "DescribeImages" else None)
    (what, text), = bad(verify(node, code=1))
    assert what == "image" and "legacy-bios" in text and "--boot-mode uefi" in text
    assert verify(node, "-disable-cvm", code=0)


@pytest.mark.parametrize("protocol, ports, words", [
    ("tcp", (15150, 15150), "UDP 4789 (pod network) is not open"),
    ("udp", (4789, 4789), "TCP 15150 (tunnel) is not open"),
    ("tcp", (15151, 15152), "TCP 15150 (tunnel) and UDP 4789 (pod network) is not open")])
def test_closed_ports(aws, protocol, ports, words):
    aws.imds.values["/latest/meta-data/local-ipv4"] = NODE_IP
    aws.ec2.authorize_security_group_ingress(GroupId=aws.group, IpPermissions=[
        {"IpProtocol": protocol, "FromPort": ports[0], "ToPort": ports[1],
         "IpRanges": [{"CidrIp": NODE_IP + "/32"}]}])
    (what, text), = bad(verify(aws, code=1))
    assert what == "security groups" and words.split(" is ")[0] in text and NODE_IP in text


def test_other_addresses_do_not_count(aws):
    aws.imds.values["/latest/meta-data/local-ipv4"] = NODE_IP
    aws.ec2.authorize_security_group_ingress(GroupId=aws.group, IpPermissions=[
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}])
    assert [what for what, _ in bad(verify(aws, code=1))] == ["security groups"]
    aws.ec2.authorize_security_group_ingress(GroupId=aws.group, IpPermissions=[
        {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "172.31.7.0/29"}]}])
    assert verify(aws, code=0)


def test_prefix_lists(aws):
    """They may hold the node: no verdict."""
    aws.imds.values["/latest/meta-data/local-ipv4"] = NODE_IP
    aws.proxy.rules.append(lambda e: (200, b"""<r><securityGroupInfo><item><ipPermissions><item>
        <ipProtocol>-1</ipProtocol><prefixListIds><item><prefixListId>pl-1</prefixListId></item></prefixListIds>
        </item></ipPermissions></item></securityGroupInfo></r>""")
        if e.action == "DescribeSecurityGroups" else None)
    (result, _, text), = [f for f in verify(aws, code=0) if f[1] == "security groups"]
    assert result == "note" and "prefix list" in text


def test_subnets(node):
    found = bad(verify(node, "-subnetid", "subnet-0123456789abcdef0", code=1))
    assert ("subnet" in [what for what, _ in found]) and "subnet-0123456789abcdef0" in str(found)


@pytest.mark.parametrize("flags, code, value, result", [
    ([], "L-1216C47A", "640.0", "ok"), ([], "L-1216C47A", "1.0", "bad"),
    (["-aws-spot"], "L-34B43A08", "2", "ok"), ([], "L-1216C47A", '"much"', "note"),
    (["-disable-cvm", "-instance-type", "g4dn.xlarge"], "L-DB2E81BA", "0.0", "bad")])
def test_quota(node, flags, code, value, result):
    """Golden answers: moto has the quotas of another service only."""
    node.proxy.rules.append(lambda e: (200, json.dumps({"Quota": {
        "ServiceCode": "ec2", "QuotaCode": code, "Value": json.loads(value)}}).encode())
        if e.action == "GetServiceQuota" else None)
    (got, _, text), = [f for f in verify(node, *flags) if f[1] == "quota"]
    assert got == result, text
    sent, = node.proxy.of("GetServiceQuota")
    assert json.loads(sent.body) == {"ServiceCode": "ec2", "QuotaCode": code}
    head = {k.lower(): v for k, v in sent.headers}
    assert f"/{world.REGION}/servicequotas/aws4_request" in head["authorization"]
    assert "x-amz-target" in head["authorization"]


def test_quotas_of_moto(world_with):
    """Asked by us and by the vendor's client, with the signature and the permission checked."""
    aws = world_with(policy=documented("all of `peerpodctl verify`"),
                     quotas={"L-1216C47A": 640.0, "L-34B43A08": 1.0})
    theirs = aws.client("service-quotas").get_service_quota
    for flags, code, result in (([], "L-1216C47A", "ok"), (["-aws-spot"], "L-34B43A08", "bad")):
        (got, _, text), = [f for f in verify(aws, *flags) if f[1] == "quota"]
        value = theirs(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
        assert got == result and text.startswith(f"{code} of EC2") and f": {value:.0f} vCPUs" in text, text


@pytest.mark.parametrize("status, body, words", [
    (None, None, ["NoSuchResourceException"]),  # moto's own, with the signature checked
    (400, {"__type": "com.amazonaws.servicequotas#AccessDeniedException",
           "Message": "User: u is not authorized to perform: servicequotas:GetServiceQuota"},
     ["AccessDeniedException", "req-7", "the IAM permission servicequotas:GetServiceQuota"])])
def test_quota_not_readable(node, status, body, words):
    node.proxy.rules.append(
        lambda e: (status, json.dumps(body).encode(), {"x-amzn-RequestId": "req-7"})
        if status and e.action == "GetServiceQuota" else None)
    (result, _, text), = [f for f in verify(node, code=0) if f[1] == "quota"]
    assert result == "note" and all(w in text for w in words), text


def template(aws, **data):
    aws.ec2.create_launch_template(LaunchTemplateName="lt1", LaunchTemplateData={
        "ImageId": aws.image, "InstanceType": "m6a.xlarge", "CpuOptions": {"AmdSevSnp": "enabled"},
        "NetworkInterfaces": [{"DeviceIndex": 1, "SubnetId": aws.subnets[2], "Groups": []},
                              {"DeviceIndex": 0, "SubnetId": aws.subnets[1], "Groups": [aws.group]}],
        **data})
    # What the template says counts, and not these.
    return ["-use-lt", "-aws-lt-name", "lt1", "-imageid", "ami-00000000", "-instance-type",
            "nope.large", "-subnetid", "subnet-0123456789abcdef0", "-securitygroupids", "sg-1"]


def test_launch_template(node):
    """Its own AMI, type, subnet and groups are looked at, and not what they replace."""
    found = verify(node, *template(node), code=0)
    said = {what: text for result, what, text in found if result == "ok"}
    assert node.image in said["image"] and said["instance type"].startswith("m6a.xlarge: 4 vCPUs")
    assert said["subnet"].startswith(node.subnets[1]) and NODE_IP in said["security groups"]
    assert "lt1" in said["launch template"] and "RunInstances" in said
    node.nothing_left()


@pytest.mark.parametrize("data, words", [
    ({"ImageId": "ami-00000000"}, "ami-00000000"),
    ({"InstanceType": "m5.large"}, "m5.large does not support AMD SEV-SNP: the launch template asks"),
    ({"InstanceType": "nope.large"}, "nope.large is not known in this region"),
    ({"NetworkInterfaces": [{"DeviceIndex": 0, "SubnetId": "subnet-0123456789abcdef1"}]},
     "subnet-0123456789abcdef1")])
def test_a_bad_launch_template(node, data, words):
    found = bad(verify(node, *template(node, **data), code=1))
    assert words in str(found), found


def test_a_template_without_a_network_or_snp(node):
    flags = template(node, NetworkInterfaces=[], CpuOptions={}, InstanceType="m5.large")
    found = verify(node, *flags, code=0)
    notes = {what: text for result, what, text in found if result == "note"}
    assert "will not be confidential" in notes["launch template"]
    assert "default" in notes["subnet"] and "default" in notes["security groups"]
    assert verify(node, *flags, "-disable-cvm", code=0)[1][0] == "ok"


def test_a_template_that_is_not_there(node):
    found = bad(verify(node, "-use-lt", "-aws-lt-name", "lt9", code=1))
    assert found[0][0] == "launch template" and "-aws-lt-name" in found[0][1]


def test_a_template_that_may_not_be_read(node):
    """It is not called bad by what it replaces; EC2's own checks of the request remain."""
    flags = template(node)
    node.imds.values.clear()
    node.proxy.rules.append(lambda e: world.error("UnauthorizedOperation", "no", 403)
                            if e.action == "DescribeLaunchTemplateVersions" else None)
    found = verify(node, *flags, code=0)
    (_, _, text), = [f for f in found if f[1] == "launch template"]
    assert "ec2:DescribeLaunchTemplateVersions" in text
    assert not node.proxy.of("GetServiceQuota") and not node.proxy.of("DescribeImages")
    node.proxy.rules.append(lambda e: world.error("InvalidLaunchTemplateName.NotFoundException")
                            if e.action == "RunInstances" else None)
    (what, text), = bad(verify(node, *flags, code=1))
    assert what == "RunInstances" and "-aws-lt-name" in text
    # What a pod may ask for is chosen from the list all the same.
    assert "nope.large" in str(bad(verify(node, *flags, "-instance-types", "m6a.large")))


def test_permissions(world_with):
    """Every one that is missing is named in one run."""
    aws = world_with(policy={"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": ["ec2:DescribeImages", "ec2:DescribeInstanceTypes"],
         "Resource": "*"}]})
    found = verify(aws, code=1)
    text = str(bad(found))
    for action in ("RunInstances", "TerminateInstances", "DescribeInstances"):
        assert f"ec2:{action}" in text, (action, found)
    notes = str([f for f in found if f[0] == "note"])
    assert "ec2:DescribeSubnets" in notes and "ec2:DescribeSecurityGroups" in notes
    aws.nothing_left()


def documented(use=None):
    """The policy of docs/aws.md, with what a row of its table names."""
    text = (world.SOURCE / "docs" / "aws.md").read_text()
    policy = json.loads(re.search(r"```json\n(.*?)```", text, re.S)[1])
    if use:
        row = re.search(rf"^\| {re.escape(use)} \| (.*) \|$", text, re.M)[1]
        policy["Statement"].append({"Effect": "Allow", "Action": re.findall(r"`(\w+:\w+)`", row),
                                    "Resource": "*"})
    return policy


def life(aws, *words, flags=()):
    made = aws.one("create", "podvm-a", "s1", *words, flags=flags)
    assert made["code"] == 0 and aws.one("wait", made["id"], "s1")["code"] == 0, made
    assert aws.one("delete", made["id"], "s1")["code"] == 0
    assert aws.one("delete", made["id"], "s1")["code"] == 0  # looks for leftovers, too


def test_the_policy_of_the_documentation(world_with):
    """A pod's whole life with the permissions that docs/aws.md names, and no others."""
    aws = world_with(policy=documented())
    life(aws, "memory=16000", flags=["-instance-types", "m6a.large,m6a.xlarge"])
    aws.nothing_left()


def test_the_policy_for_the_external_network(world_with):
    aws = world_with(policy=documented("`-ext-network-via-podvm`"))
    life(aws, "external")
    assert aws.proxy.of("AssociateAddress")
    aws.nothing_left()


def test_the_policy_for_a_template(world_with):
    aws = world_with(policy=documented("`-use-lt`"))
    life(aws, "vcpus=4", flags=template(aws))
    assert aws.proxy.of("RunInstances")[0].form["InstanceType"] == "m6a.xlarge"


def test_no_identity(aws):
    found = verify(aws, env=aws.environment(AWS_SECRET_ACCESS_KEY="wrong"), code=1)
    assert [what for _, what, _ in found] == ["identity"]
    assert "check the secret key" in found[0][2]
