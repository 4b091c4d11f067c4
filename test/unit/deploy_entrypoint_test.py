# SPDX-License-Identifier: Apache-2.0
"""entrypoint.sh: what it hands to the keeper, what it refuses, what it writes.

The real script runs with a PATH whose peerpod-keeper and cloud-api-adaptor only say what they got.
"""
import os
import pathlib
import stat
import subprocess

import pytest

SCRIPT = pathlib.Path(os.environ["PEERPOD_SOURCE"]) / "deploy" / "entrypoint.sh"
FAKE = '#!/bin/sh\necho "$(basename "$0")" "$@"\nenv >"$ENV_OUT"\n'


@pytest.fixture
def run(tmp_path):
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    for name in ("peerpod-keeper", "cloud-api-adaptor"):
        (bin_dir / name).write_text(FAKE)
        (bin_dir / name).chmod(0o755)
    (tmp_path / "etc").mkdir()

    def call(*args, **env):
        full = {"PATH": f"{bin_dir}:/usr/bin:/bin", "ENV_OUT": str(tmp_path / "env"),
                "PEERPOD_RUN_DIR": str(tmp_path / "run"),
                "PEERPOD_CONFIG_DIR": str(tmp_path / "etc"), **env}
        done = subprocess.run([str(SCRIPT), *args], env=full, capture_output=True, text=True,
                              timeout=10)
        seen = tmp_path / "env"
        done.env = dict(line.split("=", 1) for line in seen.read_text().splitlines()
                        if "=" in line) if seen.exists() else {}
        return done

    call.tmp = tmp_path
    return call


AZURE = {"AZURE_SUBSCRIPTION_ID": "s", "AZURE_REGION": "r", "AZURE_RESOURCE_GROUP": "g",
         "AZURE_SUBNET_ID": "n", "AZURE_IMAGE_ID": "i"}


def test_provider_from_the_first_argument(run):
    done = run("local", "-socket", "/x y", CLOUD_PROVIDER="aws")
    assert done.stdout == "peerpod-keeper -- cloud-api-adaptor local -socket /x y\n"
    assert done.returncode == 0


def test_provider_from_the_environment(run):
    assert run(CLOUD_PROVIDER="local").stdout == "peerpod-keeper -- cloud-api-adaptor local\n"
    assert run("-socket=/x", CLOUD_PROVIDER="local").stdout.endswith("adaptor local -socket=/x\n")


def test_no_provider_and_an_unknown_one(run):
    done = run()
    assert done.returncode == 2 and "CLOUD_PROVIDER" in done.stderr
    done = run("vsphere")
    assert done.returncode == 2 and "'vsphere'" in done.stderr
    assert done.stdout == ""


def test_every_missing_variable_is_named(run):
    done = run("azure", AZURE_REGION="r")
    assert done.returncode == 1 and done.stdout == ""
    missing = [line.split("$")[1].split()[0] for line in done.stderr.splitlines()]
    assert missing == [name for name in AZURE if name != "AZURE_REGION"]


def test_an_empty_variable_counts_as_missing(run):
    assert "$VM_POOL_IPS is NOT set" in run("byom", VM_POOL_IPS="").stderr


def test_a_flag_or_the_file_stands_for_the_variable(run):
    (run.tmp / "etc" / "azure.conf").write_text("AZURE_REGION=r\n")
    env = {k: v for k, v in AZURE.items() if k not in ("AZURE_REGION", "AZURE_IMAGE_ID")}
    assert run("azure", **env).returncode == 1
    assert run("azure", "-imageid=x", **env).returncode == 0


def test_azure_uses_a_port_that_its_network_lets_through(run):
    assert run("azure", **AZURE).env["VXLAN_PORT"] == "8472"
    assert run("azure", VXLAN_PORT="9000", **AZURE).env["VXLAN_PORT"] == "9000"
    assert "VXLAN_PORT" not in run("azure", "-vxlan-port", "7000", **AZURE).env


def test_aws_needs_an_image_or_a_template(run):
    assert "$PODVM_AMI_ID is NOT set" in run("aws").stderr
    assert run("aws", PODVM_AMI_ID="ami-1").returncode == 0
    done = run("aws", PODVM_LAUNCHTEMPLATE_NAME="kata")
    assert done.returncode == 0 and done.env["USE_PODVM_LAUNCHTEMPLATE"] == "true"


def test_gcp_credentials_go_to_a_private_file(run):
    text = '{"private_key": "a\\nb", "x": "%s \\\\ $HOME"}'
    os.umask(0)
    done = run("gcp", GCP_PROJECT_ID="p", GCP_ZONE="z", GCP_NETWORK="n", GCP_CREDENTIALS=text)
    path = pathlib.Path(done.env["GOOGLE_APPLICATION_CREDENTIALS"])
    assert path.read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert "private_key" not in done.stdout + done.stderr


def test_gcp_credentials_of_the_user_are_left_alone(run):
    done = run("gcp", GCP_PROJECT_ID="p", GCP_ZONE="z", GCP_NETWORK="n", GCP_CREDENTIALS="x",
               GOOGLE_APPLICATION_CREDENTIALS="/mine")
    assert done.env["GOOGLE_APPLICATION_CREDENTIALS"] == "/mine"
    assert not (run.tmp / "run").exists()


def test_libvirt_gets_the_data_dir(run):
    assert run("libvirt").stdout.endswith("libvirt -data-dir /opt/data-dir\n")
    assert run("libvirt", "--data-dir=/d").stdout.endswith("libvirt --data-dir=/d\n")


def test_where_keepers_meet(run):
    said = run("local", KEEPER_SOCKET="/run/a b.sock").stdout
    assert said == "peerpod-keeper -socket /run/a b.sock -- cloud-api-adaptor local\n"


def test_without_keeper(run):
    assert run("local", NO_KEEPER="1").stdout == "cloud-api-adaptor local\n"
