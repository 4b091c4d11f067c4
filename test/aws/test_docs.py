# SPDX-License-Identifier: Apache-2.0
"""docs/aws.md against the programs and the vendor's own models: what a reader would type or paste exists. Whether
the policies are enough is shown in test_verify.py."""
import json
import re
import shlex
import subprocess

import judge
import pytest
import world

TEXT = (world.SOURCE / "docs" / "aws.md").read_text()
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.S)
CODE = re.findall(r"`([^`\n]+)`", PROSE)
BLOCKS = ["\n".join(line[4:] for line in block.splitlines())
          for block in re.findall(r"(?:^    [^\n]*\n)+", PROSE, re.M)]
# IAM has these, and no API call of the name.
IAM_ONLY = {"iam:PassRole", "sts:TagSession"}
MODELS = {"ec2": "ec2", "sts": "sts", "iam": "iam", "kms": "kms", "servicequotas": "service-quotas"}


def shown(*words):
    return subprocess.run([str(world.BIN / words[0]), *words[1:]], capture_output=True, text=True,
                          check=True).stdout


def operations(model):
    return {name.lower() for name in judge.model_of(model).operation_names}


def test_options_and_variables():
    text = shown("cloud-api-adaptor", "aws", "--help")
    flags = set(re.findall(r"^  (-[a-z-]+)", text, re.M))
    source = "".join(p.read_text() for p in (world.SOURCE / "providers" / "aws").glob("*.c"))
    named = {w for word in CODE for w in word.split() if re.fullmatch(r"-[a-z][a-z-]+", w)}
    assert len(named) > 5 and named <= flags, named - flags
    variables = {w for word in CODE for w in re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", word)}
    assert len(variables) > 8
    for name in variables:
        assert name in text or f'"{name}"' in source, name
    for name in re.findall(r"^\| `(\w+)`(?:, `(\w+)`)? \|", TEXT.split("## Network")[0], re.M):
        assert all(re.search(rf"\b{n}\b", text) for n in name if n), name


def actions_of(value):
    return [value] if isinstance(value, str) else value


def test_policies():
    """JSON, and every action exists."""
    policies = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", TEXT, re.S)]
    assert len(policies) == 2
    named = {a for p in policies for s in p["Statement"] for a in actions_of(s["Action"])}
    named |= {w for word in CODE for w in re.findall(r"^(?:ec2|sts|iam|kms|servicequotas):\w+\*?$", word)}
    assert len(named) > 15
    for action in named - IAM_ONLY:
        service, _, name = action.partition(":")
        known = operations(MODELS[service])
        wanted = name.lower().rstrip("*")
        assert any(k.startswith(wanted) for k in known) if name.endswith("*") else wanted in known, action
    for statement in policies[0]["Statement"]:
        assert statement.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
    header = (world.SOURCE / "providers" / "provider.h").read_text()
    key, value = re.search(r'#define TAG_CREATOR "(.*?)" /\* always "(.*?)" \*/', header).groups()
    assert f'"aws:ResourceTag/{key}": "{value}"' in TEXT


def test_commands_are_bash():
    assert len(BLOCKS) > 4
    for block in BLOCKS:
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
    assert "peerpodctl verify aws" in TEXT and "-imageid" in shown("peerpodctl", "verify", "aws", "--help")


# The AWS CLI's own, beside the members of the model.
CLI_OWN = {"query", "output"}
CLI_SHORT = {("ec2", "authorize-security-group-ingress"): {"protocol": "IpPermissions", "port": "IpPermissions",
                                                           "source-group": "IpPermissions"}}


def aws_commands():
    text = "\n".join(BLOCKS).replace("\\\n", " ").replace("$(date +%F)", "x").replace("$(", "\n")
    lines = [line.strip() for line in text.splitlines()] + \
        [w for w in CODE if w.startswith("aws ")]
    return [shlex.split(line.rstrip(")")) for line in lines
            if line.startswith("aws ") and not line.startswith("aws s3 ")]


def test_commands_of_the_aws_cli():
    """Operation and parameters, by the model that the CLI is made from."""
    import botocore
    import botocore.loaders
    import botocore.waiter
    seen = []
    for words in aws_commands():
        _, service, operation, *rest = words
        model = judge.model_of(service)
        if operation == "wait":
            waiters = botocore.waiter.WaiterModel(
                botocore.loaders.Loader().load_service_model(service, "waiters-2"))
            by_name = {botocore.xform_name(n, "-"): n for n in waiters.waiter_names}
            name = waiters.get_waiter(by_name[rest.pop(0)]).operation
        else:
            name = {botocore.xform_name(n, "-"): n for n in model.operation_names}[operation]
        members = {botocore.xform_name(m, "-") for m in model.operation_model(name).input_shape.members}
        given = {w[2:] for w in rest if w.startswith("--")} - CLI_OWN
        given -= {f"no-{m}" for m in members} | CLI_SHORT.get((service, operation), {}).keys()
        assert given <= members, (operation, given - members)
        seen.append(operation)
    assert {"authorize-security-group-ingress", "import-snapshot", "register-image", "wait",
            "create-pod-identity-association", "modify-instance-metadata-options"} <= set(seen), seen


@pytest.mark.parametrize("place", ["errors", "quotas"])
def test_names_of_aws(place):
    source = "".join((world.SOURCE / "providers" / "aws" / f"{n}.c").read_text()
                     for n in ("error", "hints", "verify"))
    pattern = {"errors": r"`(Request\w+|[A-Z]\w+Exceeded)`", "quotas": r"\b(L-[0-9A-F]{8})\b"}[place]
    named = set(re.findall(pattern, TEXT))
    assert named
    for name in named:
        assert name in source, name
