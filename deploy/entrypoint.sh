#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# usage: entrypoint.sh [PROVIDER] [FLAG...]
#
# The container's entry point, installed as /usr/local/bin/entrypoint.sh because charts run it by
# that path. The provider comes from the first argument or from CLOUD_PROVIDER; everything behind it
# goes to cloud-api-adaptor as it is. The daemon reads its other settings from the environment
# itself; here stand only the things that happened in the Go adaptor's script and not in its program.
#
# The keeper becomes the container's first process, so that a daemon that dies comes back within
# milliseconds and finds its pods' connections (NO_KEEPER=1 runs the daemon alone). KEEPER_SOCKET is where
# it meets other keepers (peerpod-keeper(8)); without it, it meets none.
set -eu

run_dir=${PEERPOD_RUN_DIR:-/run/peerpod}
config_dir=${PEERPOD_CONFIG_DIR:-/etc/peerpod}

usage()
{
    cat >&2 <<END
usage: entrypoint.sh [PROVIDER] [FLAG...]
   or: CLOUD_PROVIDER=PROVIDER entrypoint.sh [FLAG...]

PROVIDER is one of aws, azure, gcp, libvirt, byom, local. Its settings come from flags, from the
environment and from $config_dir/PROVIDER.conf; 'cloud-api-adaptor PROVIDER --help' lists them.
END
    exit 2
}

# True when the variable is set, in the environment or in the provider's file, or its flag is given.
# given VARIABLE FLAG ARGUMENT...
given()
{
    variable=$1 flag=$2
    shift 2
    eval "[ -n \"\${$variable:-}\" ]" && return 0
    grep -q "^$variable=." "$config_dir/$provider.conf" 2>/dev/null && return 0
    has_flag "$flag" "$@"
}

# has_flag FLAG ARGUMENT...
has_flag()
{
    wanted=$1
    shift
    for argument; do
        case $argument in
        "-$wanted" | "--$wanted" | "-$wanted="* | "--$wanted="*) return 0 ;;
        esac
    done
    return 1
}

# Names every required variable that is missing, not only the first.
# require "VARIABLE FLAG ..." ARGUMENT...
require()
{
    pairs=$1 lacking=
    shift
    # shellcheck disable=SC2086  # a list of words
    while read -r name option; do
        given "$name" "$option" "$@" || lacking="$lacking $name"
    done <<END
$(printf '%s %s\n' $pairs)
END
    [ -z "$lacking" ] && return 0
    for name in $lacking; do
        echo "entrypoint.sh: \$$name is NOT set; provider $provider needs it" >&2
    done
    exit 1
}

# The Google libraries and our provider read credentials from a file; only its owner may.
gcp_credentials()
{
    [ -n "${GCP_CREDENTIALS:-}" ] || return 0
    [ -z "${GOOGLE_APPLICATION_CREDENTIALS:-}" ] || return 0
    umask_before=$(umask)
    umask 077
    mkdir -p "$run_dir/credentials"
    chmod 0700 "$run_dir/credentials"
    # A new file each time: an old one may have another mode.
    rm -f "$run_dir/credentials/gcp.json"
    printf '%s' "$GCP_CREDENTIALS" >"$run_dir/credentials/gcp.json"
    umask "$umask_before"
    GOOGLE_APPLICATION_CREDENTIALS=$run_dir/credentials/gcp.json
    export GOOGLE_APPLICATION_CREDENTIALS
}

case ${1:-} in
help | -h | -help | --help) usage ;;
"" | -*) provider=${CLOUD_PROVIDER:-} ;;
*)
    provider=$1
    shift
    ;;
esac

case $provider in
aws)
    if [ -n "${PODVM_LAUNCHTEMPLATE_NAME:-}" ]; then
        USE_PODVM_LAUNCHTEMPLATE=true # as before: naming a template means using it
        export USE_PODVM_LAUNCHTEMPLATE
    fi
    [ "${USE_PODVM_LAUNCHTEMPLATE:-}" = true ] || require "PODVM_AMI_ID imageid" "$@"
    ;;
azure)
    require "AZURE_SUBSCRIPTION_ID subscriptionid AZURE_REGION region
        AZURE_RESOURCE_GROUP resourcegroup AZURE_SUBNET_ID subnetid AZURE_IMAGE_ID imageid" "$@"
    # Azure's network drops VXLAN's own port.
    has_flag vxlan-port "$@" || export VXLAN_PORT="${VXLAN_PORT:-8472}"
    ;;
gcp)
    require "GCP_PROJECT_ID gcp-project-id GCP_ZONE zone GCP_NETWORK network" "$@"
    gcp_credentials
    ;;
libvirt)
    has_flag data-dir "$@" || set -- -data-dir /opt/data-dir "$@"
    ;;
byom)
    require "VM_POOL_IPS vm-pool-ips" "$@"
    ;;
local) ;;
"")
    echo "entrypoint.sh: no provider: give it as the first argument or set CLOUD_PROVIDER" >&2
    usage
    ;;
*)
    echo "entrypoint.sh: provider '$provider' is not one that this program has" >&2
    usage
    ;;
esac

if [ "${NO_KEEPER:-}" = 1 ]; then
    exec cloud-api-adaptor "$provider" "$@"
fi
exec peerpod-keeper ${KEEPER_SOCKET:+-socket "$KEEPER_SOCKET"} -- cloud-api-adaptor "$provider" "$@"
