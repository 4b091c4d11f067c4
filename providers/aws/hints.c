/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AWS's error codes: which ones say "not here, not now, try another place", and a way out for
 * those that an operator can do something about.
 *
 * The names are of the EC2 API reference ("Error codes"). A code that is in no table is final and
 * has no hint: AWS's own message stands alone. The quota's name is worth the table below: the
 * message speaks of a "bucket", the console and the API know it by name and code.
 */
#include "providers/aws/hints.h"

#include "base/str.h"

#define ACTION_MAX 96

static const struct {
    const char *code;
    enum aws_refusal refusal;
} refusals[] = {
    {"InsufficientInstanceCapacity", AWS_REFUSAL_CAPACITY},
    {"InsufficientCapacity", AWS_REFUSAL_CAPACITY},
    {"InsufficientHostCapacity", AWS_REFUSAL_CAPACITY},
    {"InsufficientReservedInstanceCapacity", AWS_REFUSAL_CAPACITY},
    {"SpotMaxPriceTooLow", AWS_REFUSAL_CAPACITY},
    {"Unsupported", AWS_REFUSAL_CAPACITY}, /* the type, in this zone */
    {"InsufficientFreeAddressesInSubnet", AWS_REFUSAL_SUBNET},
    {"InstanceLimitExceeded", AWS_REFUSAL_QUOTA},
    {"VcpuLimitExceeded", AWS_REFUSAL_QUOTA},
    {"MaxSpotInstanceCountExceeded", AWS_REFUSAL_QUOTA},
};

enum aws_refusal aws_refusal(const struct aws_error *error)
{
    for (size_t i = 0; i < ARRAY_SIZE(refusals); i++)
        if (str_eq(error->code, refusals[i].code))
            return refusals[i].refusal;
    return AWS_REFUSAL_OTHER;
}

bool aws_error_is(const struct aws_error *error, const char *code)
{
    return str_eq(error->code, code);
}

static const struct {
    const char *code, *hint;
} hints[] = {
    {"InstanceLimitExceeded",
     "raise the quota of the type's family in Service Quotas (Amazon EC2), "
     "or name types of another family in -instance-types"},
    {"VcpuLimitExceeded",
     "raise the quota of the type's family in Service Quotas (Amazon EC2): 'Running On-Demand "
     "Standard (A, C, D, H, I, M, R, T, Z) instances' is L-1216C47A, 'Running On-Demand G and VT "
     "instances' L-DB2E81BA, 'Running On-Demand P instances' L-417A185B"},
    {"MaxSpotInstanceCountExceeded",
     "raise the quota 'All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests' "
     "(L-34B43A08) in Service Quotas (Amazon EC2)"},
    {"AddressLimitExceeded",
     "raise the quota 'EC2-VPC Elastic IPs' (L-0263D0A3) in Service Quotas (Amazon EC2)"},
    {"InsufficientInstanceCapacity",
     "AWS has none left there now: name more types in -instance-types and more subnets, in other "
     "zones, in -subnetid"},
    {"InsufficientFreeAddressesInSubnet", "name more subnets in -subnetid"},
    {"InvalidAMIID.NotFound", "check -imageid: an AMI exists in one region, and must be shared "
                              "with the account"},
    {"InvalidAMIID.Malformed", "check -imageid"},
    {"InvalidAMIID.Unavailable", "the AMI is still being copied, or its creation failed"},
    {"InvalidKeyPair.NotFound", "check -keyname: a key pair exists in one region"},
    {"InvalidSubnetID.NotFound", "check -subnetid and the region"},
    {"InvalidGroup.NotFound", "check -securitygroupids and the region"},
    {"InvalidLaunchTemplateName.NotFoundException", "check -aws-lt-name and the region"},
    {"InvalidInstanceType.NotFound", "check -instance-type and -instance-types"},
    {"InvalidInstanceType", "check -instance-type and -instance-types"},
    {"InvalidIdentityToken",
     "the cluster's OIDC provider has to be known to IAM, with the audience "
     "sts.amazonaws.com (docs/aws.md, IRSA)"},
    {"RegionDisabledException", "STS is switched off for this region (IAM, account settings)"},
    {"OptInRequired", "the account is not subscribed to what the AMI is made of"},
    {"PendingVerification", "AWS is still verifying the account for this region"},
    {"AuthFailure", "check the credentials, and that the region is enabled for the account"},
    {"InvalidClientTokenId", "the access key does not exist or is not active"},
    {"SignatureDoesNotMatch", "check the secret key"},
    {"ExpiredToken", "the credentials have expired and no new ones could be had"},
    {"RequestExpired", "check the node's clock"},
};

static void append(struct err *err, const char *hint)
{
    const struct err old = *err;

    err_clear(err);
    err_set(err, old.code, "%s; %s", old.text, hint);
}

/* "... is not authorized to perform: ec2:CreateTags on resource ..." */
static void denied(const struct aws_error *error, const char *service, const char *action,
                   struct err *err)
{
    static const char phrase[] = "not authorized to perform: ";
    const char *found = strstr(error->message, phrase);
    char name[ACTION_MAX], hint[ACTION_MAX * 2];

    if (str_eq(action, "AssumeRoleWithWebIdentity")) {
        append(err, "the role's trust policy has to name this service account (docs/aws.md, IRSA)");
        return;
    }
    snprintf(name, sizeof(name), "%s:%s", service, action);
    if (found) {
        found += sizeof(phrase) - 1;
        snprintf(name, sizeof(name), "%.*s",
                 (int)MIN(strcspn(found, " \n"), (size_t)ACTION_MAX - 1), found);
    }
    snprintf(hint, sizeof(hint), "the identity needs the IAM permission %s (docs/aws.md)", name);
    append(err, hint);
}

void aws_hint(const struct aws_error *error, const char *service, const char *action,
              struct err *err)
{
    if (!err || !err->code)
        return;
    if (aws_error_is(error, "UnauthorizedOperation") || aws_error_is(error, "AccessDenied") ||
        aws_error_is(error, "AccessDeniedException")) {
        denied(error, service, action, err);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(hints); i++)
        if (aws_error_is(error, hints[i].code))
            append(err, hints[i].hint);
}
