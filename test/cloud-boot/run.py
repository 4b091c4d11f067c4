# SPDX-License-Identifier: Apache-2.0
"""usage: run.py PROVIDER DIRECTORY

A cloud's test double whose instances run, until this program is killed: for scripts/demo. Once it serves,
DIRECTORY/environment holds what the daemon's environment needs, as KEY='value' lines for a shell."""
import pathlib
import shlex
import signal
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "aws")]

import cloud_boot


def aws():
    import ec2_cloud
    import world
    double = world.World()
    cloud_boot.make_node_network(ec2_cloud.NODE_ADDRESS)
    return ec2_cloud.Ec2Cloud(double), double.own_environment()


CLOUDS = {"aws": aws}


def main():
    provider, directory = sys.argv[1], pathlib.Path(sys.argv[2])
    if provider not in CLOUDS:
        sys.exit(f"no test double of '{provider}': {', '.join(CLOUDS)}")
    cloud, environment = CLOUDS[provider]()
    cloud_boot.CloudBoot(cloud, directory / "vms", directory / "vm-logs")
    text = "".join(f"{key}={shlex.quote(value)}\n" for key, value in environment.items())
    (directory / "environment.new").write_text(text)
    (directory / "environment.new").rename(directory / "environment")
    signal.pause()


main()
