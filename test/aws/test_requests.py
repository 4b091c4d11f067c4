# SPDX-License-Identifier: Apache-2.0
"""Every request that we can send, as bytes on the wire: the model of the vendor's SDK reads it and
writes it again the same (judge.py; conftest.py asks it about every request of every test), and it equals what the SDK sent where that was recorded.

CASES sets each option that alters a request at least once. A new option of the provider fails here until
it has a case, or a reason why it has none.
"""
import base64
import json
import subprocess

import judge
import pytest
import world

# option -> flags of a create, extra words, and what must then be in the RunInstances form. A value of
# None: the key must not be there. "{...}" is of the world.
CASES = {
    "imageid": (["-imageid", "{other_image}"], [], {"ImageId": "{other_image}"}),
    "instance-type": (["-instance-type", "c6a.xlarge"], [], {"InstanceType": "c6a.xlarge"}),
    "instance-types": (["-instance-types", "m6a.large,m6a.xlarge,r6a.large"],
                       ["memory=16000"], {"InstanceType": "r6a.large"}),
    "aws-lt-name": (["-use-lt", "-aws-lt-name", "lt2"], [],
                    {"LaunchTemplate.LaunchTemplateName": "lt2", "ImageId": None,
                     "InstanceType": None}),
    "use-lt": (["-use-lt", "-instance-types", "m6a.large"], ["type=m6a.large"],
               {"LaunchTemplate.LaunchTemplateName": "kata", "InstanceType": "m6a.large",
                "NetworkInterface.1.SubnetId": None, "CpuOptions.AmdSevSnp": None,
                "MetadataOptions.HttpTokens": None, "BlockDeviceMapping.1.DeviceName": None}),
    "keyname": (["-keyname", "k1"], [], {"KeyName": "k1"}),
    "subnetid": (["-subnetid", "{subnet2}"], [], {"NetworkInterface.1.SubnetId": "{subnet2}",
                                                  "NetworkInterface.1.DeviceIndex": "0",
                                                  "NetworkInterface.1.DeleteOnTermination": "true"}),
    "securitygroupids": (["-securitygroupids", "{group},{group2}"], [],
                         {"NetworkInterface.1.SecurityGroupId.1": "{group}",
                          "NetworkInterface.1.SecurityGroupId.2": "{group2}"}),
    "use-public-ip": (["-use-public-ip"], [],
                      {"NetworkInterface.1.AssociatePublicIpAddress": "true"}),
    "root-volume-size": (["-root-volume-size", "77"], [],
                         {"BlockDeviceMapping.1.Ebs.VolumeSize": "77",
                          "BlockDeviceMapping.1.DeviceName": "/dev/xvda",
                          "BlockDeviceMapping.1.Ebs.DeleteOnTermination": "true"}),
    "disable-cvm": (["-disable-cvm"], [], {"CpuOptions.AmdSevSnp": None}),
    "aws-spot": (["-aws-spot"], [],
                 {"InstanceMarketOptions.MarketType": "spot",
                  "InstanceMarketOptions.SpotOptions.SpotInstanceType": "one-time",
                  "TagSpecification.4.ResourceType": "spot-instances-request"}),
    "tags": (["-tags", "a b=c/d+e,peerpod-sandbox=not,k=="], [],
             {"TagSpecification.1.Tag.4.Key": "a b", "TagSpecification.1.Tag.4.Value": "c/d+e",
              "TagSpecification.1.Tag.5.Key": "k", "TagSpecification.1.Tag.5.Value": "=",
              "TagSpecification.1.Tag.6.Key": None}),
}
# What reaches a request otherwise than by an option.
WORDS = {
    "plain": ([], [], {
        "CpuOptions.AmdSevSnp": "enabled", "MetadataOptions.HttpTokens": "required",
        "MetadataOptions.HttpPutResponseHopLimit": "1", "MetadataOptions.HttpEndpoint": "enabled",
        "InstanceInitiatedShutdownBehavior": "terminate", "InstanceType": "m6a.large",
        "TagSpecification.1.ResourceType": "instance", "TagSpecification.2.ResourceType": "volume",
        "TagSpecification.3.ResourceType": "network-interface", "MinCount": "1", "MaxCount": "1",
        "BlockDeviceMapping.1.Ebs.VolumeSize": "30"}),
    "volume of the AMI": (["-root-volume-size", "0"], [], {
        "BlockDeviceMapping.1.Ebs.VolumeSize": "15",
        "BlockDeviceMapping.1.Ebs.DeleteOnTermination": "true"}),
    "volume not below the AMI's": (["-root-volume-size", "1"], [], {
        "BlockDeviceMapping.1.Ebs.VolumeSize": "15"}),
    "another image": ([], ["image={other_image}"], {"ImageId": "{other_image}"}),
    "external": ([], ["external"], {
        "NetworkInterface.2.DeviceIndex": "1", "NetworkInterface.2.SubnetId": "{subnet}",
        "NetworkInterface.2.DeleteOnTermination": "true",
        "NetworkInterface.2.SecurityGroupId.1": "{group}"}),
    "external with a public address": (["-use-public-ip"], ["external"], {
        "NetworkInterface.1.AssociatePublicIpAddress": None}),
    "vCPUs alone": (["-instance-types", "m6a.large,m6a.4xlarge,m6a.xlarge"], ["vcpus=3"],
                    {"InstanceType": "m6a.xlarge"}),
    "GPUs": (["-disable-cvm", "-instance-types", "m6a.large,g4dn.12xlarge,g4dn.xlarge"], ["gpus=1"],
             {"InstanceType": "g4dn.xlarge"}),
}
# Options that alter no request, or every one in a way that is tested elsewhere (aws.client).
WITHOUT = {
    "aws-access-key-id", "aws-secret-key", "aws-session-token", "aws-profile", "aws-region",
    "aws-endpoint-url", "aws-endpoint-url-ec2", "aws-endpoint-url-sts", "aws-metadata-endpoint",
    "aws-ca-bundle", "aws-settle-time",
}


@pytest.fixture
def names(aws):
    group2 = aws.ec2.create_security_group(GroupName="two", Description="d", VpcId=aws.vpc)["GroupId"]
    images = aws.ec2.describe_images(Filters=[{"Name": "architecture", "Values": ["x86_64"]}])
    other = next(i["ImageId"] for i in images["Images"] if i["ImageId"] != aws.image)
    for template in ("kata", "lt1", "lt2"):
        aws.ec2.create_launch_template(LaunchTemplateName=template, LaunchTemplateData={
            "ImageId": aws.image, "InstanceType": "c6a.large", "NetworkInterfaces": [
                {"DeviceIndex": 0, "SubnetId": aws.subnets[0], "DeleteOnTermination": True}]})
    return {"other_image": other, "subnet": aws.subnets[0], "subnet2": aws.subnets[1],
            "group": aws.group, "group2": group2}


def test_every_option_has_a_case():
    shown = subprocess.run([str(world.BIN / "cloud-api-adaptor"), "aws", "--help"],
                           capture_output=True, text=True, check=True).stdout
    part = shown.split("\naws options:\n")[1].split("options:\n")[0]
    options = {line.split()[0].lstrip("-") for line in part.splitlines()
               if line.startswith("  -")}
    assert len(options) > 20
    assert options == CASES.keys() | WITHOUT, "an option without a case (CASES), or a case without one"


def test_every_option(aws, names):
    filled = {name: ([f.format(**names) for f in flags], [w.format(**names) for w in words],
                     {k: v and v.format(**names) for k, v in want.items()})
              for name, (flags, words, want) in {**CASES, **WORDS}.items()}
    for i, (name, (flags, words, want)) in enumerate(filled.items()):
        made = aws.one("create", f"podvm-{i}", f"s{i}", f"token={i:032}", *words, flags=flags)
        assert made["code"] == 0, (name, made)
        sent = aws.proxy.of("RunInstances")[-1]
        for key, value in want.items():
            assert sent.form.get(key) == value, (name, key, sent.form)
        if "external" in words:
            assert aws.one("wait", made["id"], f"s{i}")["code"] == 0
        assert aws.one("delete", made["id"], f"s{i}", flags=flags)["code"] == 0
    actions = {e.action for e in aws.proxy.exchanges}
    assert actions >= {"RunInstances", "DescribeInstances", "TerminateInstances", "DescribeImages",
                       "DescribeInstanceTypes", "AllocateAddress", "AssociateAddress",
                       "DescribeAddresses", "ReleaseAddress", "DescribeNetworkInterfaces"}, actions
    assert aws.instances() == [] and aws.ec2.describe_addresses()["Addresses"] == []


def test_the_judge_refuses():
    """What it is there for: keys that the service would ignore or misread."""
    good = ("Action=RunInstances&Version=2016-11-15&MinCount=1&MaxCount=1&ImageId=ami-1&"
            "CpuOptions.AmdSevSnp=enabled&NetworkInterface.1.DeviceIndex=0&"
            "NetworkInterface.1.SecurityGroupId.1=sg-1&TagSpecification.1.ResourceType=instance&"
            "TagSpecification.1.Tag.1.Key=k&TagSpecification.1.Tag.1.Value=a%20b&UserData=QQ%3D%3D")
    judge.round_trip(good)
    for was, is_now in (
            ("CpuOptions.AmdSevSnp", "CpuOptions.AMDSevSnp"),
            ("CpuOptions.AmdSevSnp", "AmdSevSnp"),
            ("enabled", "enable"),
            ("TagSpecification.1.ResourceType", "TagSpecifications.1.ResourceType"),
            ("TagSpecification.1.ResourceType=instance", "TagSpecification.1.ResourceType=instanz"),
            ("SecurityGroupId.1", "SecurityGroup.1"),
            ("NetworkInterface.1.SecurityGroupId.1", "NetworkInterface.1.SecurityGroupId.2"),
            ("TagSpecification.1.Tag.1.Value", "TagSpecification.1.Tag.1.Val"),
            ("Tag.1.Key", "Tag.0.Key"),
            ("MaxCount=1&", ""),
            ("MaxCount=1", "MaxCount=many"),
            ("a%20b", "a+b"),
            ("Version=2016-11-15", "Version=2015-01-01"),
            ("RunInstances", "RunInstance"),
            ("ImageId=ami-1", "ImageId=ami-1&ImageId=ami-2"),
            ("ImageId=ami-1", "ImageId=ami-1&Spot=true")):
        assert was in good
        with pytest.raises(judge.Refused):
            judge.round_trip(good.replace(was, is_now))
    role = "Action=AssumeRole&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr&RoleSessionName=s1"
    judge.round_trip(role, "sts")
    target, quota = "ServiceQuotasV20190624.GetServiceQuota", '{"ServiceCode":"ec2","QuotaCode":"L-1"}'
    judge.round_trip_json(target, quota)
    for refused in (lambda: judge.round_trip(role.replace("SessionName", "Session"), "sts"),
                    lambda: judge.round_trip(role + "&ExternalID=ee", "sts"),
                    lambda: judge.round_trip_json(target + "s", quota),
                    lambda: judge.round_trip_json("ServiceQuotas.GetServiceQuota", quota),
                    lambda: judge.round_trip_json(target, quota.replace("Code", "Id", 1)),
                    lambda: judge.round_trip_json(target, quota.replace("}", ',"More":1}'))):
        with pytest.raises(judge.Refused):
            refused()


# -- against what the vendor's SDK sent --

def recorded():
    path = world.CORPUS / "recordings" / "aws-ec2.jsonl"
    if not path.exists():
        pytest.skip(f"no corpus at {path}")
    with open(path, encoding="utf-8") as lines:
        return {e["scenario"]: e for e in map(json.loads, lines)}


# The SDK sets these in the recording, we have no option for them, or leave them to the AMI.
THEIRS = {"BlockDeviceMapping.1.Ebs.VolumeType", "BlockDeviceMapping.1.Ebs.Encrypted",
          "Monitoring.Enabled", "Placement.AvailabilityZone", "EbsOptimized",
          "IamInstanceProfile.Name", "MetadataOptions.InstanceMetadataTags",
          "InstanceMarketOptions.SpotOptions.MaxPrice", "LaunchTemplate.Version"}
# Ours alone: they stand in another recording, or only the round trip judges them.
OURS = {"InstanceInitiatedShutdownBehavior", "MetadataOptions", "TagSpecification",
        "BlockDeviceMapping"}
# The same with other names: a network at the instance's level there, as an interface here.
NETWORK = {"SubnetId", "SecurityGroupId", "NetworkInterface"}
# One hop for us; a token of the sandbox; the AMI's own root device.
DIFFER = {"MetadataOptions.HttpPutResponseHopLimit", "ClientToken", "BlockDeviceMapping.1.DeviceName"}


def flat(form, without):
    return {k: v for k, v in form.items()
            if not any(k == w or k.startswith(w + ".") for w in without)}


def test_as_recorded_run_instances(aws, names, tmp_path):
    """RunInstances with the recording's own values: every key of both is the same."""
    import urllib.parse
    for scenario, flags, words in (
            ("RunInstances.sevsnp.subnet", ["-root-volume-size", "20", "-keyname", "k1",
                                            "-tags", "spaced key/+=v=1&x y*~"], []),
            ("RunInstances.networkInterfaces", [], ["external"]),
            ("RunInstances.launchTemplate", ["-use-lt", "-aws-lt-name", "lt1"], []),
            ("RunInstances.spot", ["-aws-spot"], [])):
        theirs = dict(urllib.parse.parse_qsl(recorded()[scenario]["body"], keep_blank_values=True))
        data = tmp_path / "data"
        data.write_bytes(base64.b64decode(theirs["UserData"]))
        # moto does not know the recording's subnet; the request is looked at, not its answer.
        aws.proxy.rules[:] = [lambda e: world.error("Stop", "seen") if e.action == "RunInstances"
                              else None]
        subnet = theirs.get("SubnetId") or theirs.get("NetworkInterface.1.SubnetId") or "subnet-1"
        aws.one("create", theirs.get("TagSpecification.1.Tag.1.Value", "n"), "s", f"data={data}",
                *words, flags=["-subnetid", subnet, "-securitygroupids", "sg-a34c878781bd7d989",
                               *flags],
                env=aws.environment(PODVM_AMI_ID=theirs.get("ImageId", aws.image)))
        ours = aws.proxy.of("RunInstances")[-1].form
        assert theirs["UserData"] == ours["UserData"]
        both = theirs.keys() & ours.keys() - DIFFER
        for key in both:
            if not key.startswith("TagSpecification"):
                assert ours[key] == theirs[key], (scenario, key)
        left = flat({k: v for k, v in theirs.items() if k not in ours}, THEIRS | NETWORK)
        if scenario == "RunInstances.networkInterfaces":
            left.pop("NetworkInterface.1.AssociatePublicIpAddress", None)
            for key, value in theirs.items():
                if key.startswith("NetworkInterface") and "PublicIp" not in key:
                    assert ours[key] == value, key
        if scenario == "RunInstances.sevsnp.subnet":
            assert ours["NetworkInterface.1.SubnetId"] == theirs["SubnetId"]
            assert ours["NetworkInterface.1.SecurityGroupId.1"] == theirs["SecurityGroupId.1"]
            for spec in ("1", "2"):
                assert ours[f"TagSpecification.{spec}.ResourceType"] == \
                    theirs[f"TagSpecification.{spec}.ResourceType"]
            pair = {ours[f"TagSpecification.1.Tag.{i}.Key"]: ours[f"TagSpecification.1.Tag.{i}.Value"]
                    for i in range(1, 5)}
            assert pair["spaced key/+"] == theirs["TagSpecification.1.Tag.2.Value"]
        assert not left, (scenario, left)
        more = flat({k: v for k, v in ours.items() if k not in theirs}, OURS | NETWORK)
        more.pop("CpuOptions.AmdSevSnp", None)
        assert not more, (scenario, more)


def test_as_recorded_others(aws):
    """The reads and TerminateInstances: the whole tree is the same, but for ids and names."""
    made = aws.one("create", "podvm-a", "s1", flags=["-instance-types", "m6a.large,m6a.xlarge"])
    aws.one("wait", made["id"], "")
    aws.one("delete", made["id"], "")
    sent = {}
    for exchange in aws.proxy.exchanges:
        sent[exchange.action] = judge.tree(exchange.body.decode())
    for scenario in ("DescribeInstances.byId", "TerminateInstances", "DescribeImages.byId"):
        theirs = judge.tree(recorded()[scenario]["body"])
        ours = sent[theirs["Action"]]
        key, value = next((k, v) for k, v in ours.items() if isinstance(v, dict))
        assert theirs[key].keys() == value.keys() == {"1"}
        value["1"] = theirs[key]["1"]
        assert ours == theirs, scenario
    types = sent["DescribeInstanceTypes"]
    theirs = judge.tree(recorded()["DescribeInstanceTypes.sevsnpFilter"]["body"])
    assert types.keys() == theirs.keys() and types["MaxResults"] == theirs["MaxResults"]
    assert types["Filter"]["1"] == {"Name": "instance-type",
                                    "Value": {"1": "m6a.large", "2": "m6a.xlarge"}}
    assert types["Filter"]["1"].keys() == theirs["Filter"]["1"].keys()


def test_as_recorded_verify(aws):
    """What `peerpodctl verify` asks; the answers are left to moto, which knows none of these."""
    want = {name: judge.tree(recorded()[name]["body"])
            for name in ("DescribeSubnets", "DescribeSecurityGroups", "RunInstances.dryRun")}
    subprocess.run([world.BIN / "peerpodctl", "verify", "aws", "-subnetid",
                    want["DescribeSubnets"]["SubnetId"]["1"], "-securitygroupids",
                    want["DescribeSecurityGroups"]["GroupId"]["1"]],
                   env=aws.environment(), capture_output=True, timeout=60, check=False)
    for action in ("DescribeSubnets", "DescribeSecurityGroups"):
        sent, = aws.proxy.of(action)
        assert judge.tree(sent.body.decode()) == want[action]
    sent, = aws.proxy.of("RunInstances")
    assert sent.form["DryRun"] == want["RunInstances.dryRun"]["DryRun"]


def test_as_recorded_list(aws):
    """Filters, and the second page."""
    theirs = judge.tree(recorded()["DescribeInstances.filters"]["body"])
    page = judge.tree(recorded()["DescribeInstances.page.next"]["body"])
    answers = [f"<r><reservationSet/><nextToken>{page['NextToken']}</nextToken></r>", "<r/>"]
    aws.proxy.rules.append(lambda e: (200, answers.pop(0).encode()))
    aws.tool("list", f"Name={theirs['Filter']['1']['Value']['1']}")
    first, second = (judge.tree(e.body.decode()) for e in aws.proxy.exchanges)
    assert first.pop("MaxResults") == "100"
    assert set(theirs["Filter"]["2"]["Value"].values()) < \
        set(first["Filter"]["2"].pop("Value").values())
    del theirs["Filter"]["2"]["Value"]
    assert first == theirs
    assert second["NextToken"] == page["NextToken"] and second.keys() == page.keys() | {"Filter"}
