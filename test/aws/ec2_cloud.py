# SPDX-License-Identifier: Apache-2.0
"""moto as a cloud whose instances run (test/cloud-boot)."""
import base64
import contextlib
import pathlib
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cloud-boot"))

from cloud_boot import Machine

NODE_ADDRESS = "172.31.255.4/16"  # moto's default VPC; its instances are elsewhere in it


class Ec2Cloud:
    """Asks moto by the vendor's client, beside the proxy: its requests are nobody's to judge."""

    def __init__(self, world):
        self.world = world
        self.ec2 = world.client("ec2")
        self.changed = threading.Event()
        self.kill = lambda instance: None  # cloud_boot's
        world.proxy.before.append(self.end)
        world.proxy.after.append(self.look_at)

    def end(self, exchange):
        """A machine is dead before its address is another's."""
        if exchange.action == "TerminateInstances":
            for key, value in exchange.form.items():
                if key.startswith("InstanceId."):
                    self.kill(value)

    def look_at(self, exchange):
        if exchange.action in ("RunInstances", "TerminateInstances"):
            self.changed.set()

    def running(self):
        pages = self.ec2.get_paginator("describe_instances").paginate(
            Filters=[{"Name": "instance-state-name", "Values": ["running"]}])
        found = [i for page in pages for r in page["Reservations"] for i in r["Instances"]]
        return {i["InstanceId"]: Machine(self.name_of(i), i["PrivateIpAddress"],
                                         len(i["NetworkInterfaces"]) > 1) for i in found}

    @staticmethod
    def name_of(instance):
        return next((t["Value"] for t in instance.get("Tags", []) if t["Key"] == "Name"), "")

    def user_data(self, instance):
        read = self.ec2.describe_instance_attribute(InstanceId=instance, Attribute="userData")
        return base64.b64decode(read["UserData"].get("Value", ""))

    def power_off(self, instance):
        """InstanceInitiatedShutdownBehavior is "terminate". Somebody may do the same just now."""
        import botocore.exceptions
        with contextlib.suppress(botocore.exceptions.ClientError):
            self.ec2.terminate_instances(InstanceIds=[instance])
