//! The partitions of AWS: from a region to the names of its endpoints.

/// A group of regions with accounts, ARNs and endpoint names of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As in ARNs.
    pub(crate) id: &'static str,
    /// How the names of its regions begin.
    prefix: &'static str,
    /// What the names of its endpoints end with: `sts.eu-west-1.amazonaws.com`.
    pub(crate) suffix: &'static str,
    /// The same for endpoints that have IPv6 as well: `sts.eu-west-1.api.aws`.
    pub(crate) dual_stack_suffix: &'static str,
}

/// Suffixes as in botocore's `partitions.json`. The first that fits counts; the last fits every region.
const PARTITIONS: [Partition; 8] = [
    Partition {
        id: "aws-cn",
        prefix: "cn-",
        suffix: "amazonaws.com.cn",
        dual_stack_suffix: "api.amazonwebservices.com.cn",
    },
    Partition {
        id: "aws-eusc",
        prefix: "eusc-",
        suffix: "amazonaws.eu",
        dual_stack_suffix: "api.amazonwebservices.eu",
    },
    Partition { id: "aws-us-gov", prefix: "us-gov-", suffix: "amazonaws.com", dual_stack_suffix: "api.aws" },
    Partition { id: "aws-iso", prefix: "us-iso-", suffix: "c2s.ic.gov", dual_stack_suffix: "api.aws.ic.gov" },
    Partition { id: "aws-iso-b", prefix: "us-isob-", suffix: "sc2s.sgov.gov", dual_stack_suffix: "api.aws.scloud" },
    Partition {
        id: "aws-iso-e",
        prefix: "eu-isoe-",
        suffix: "cloud.adc-e.uk",
        dual_stack_suffix: "api.cloud-aws.adc-e.uk",
    },
    Partition {
        id: "aws-iso-f",
        prefix: "us-isof-",
        suffix: "csp.hci.ic.gov",
        dual_stack_suffix: "api.aws.hci.ic.gov",
    },
    Partition { id: "aws", prefix: "", suffix: "amazonaws.com", dual_stack_suffix: "api.aws" },
];

impl Partition {
    /// The partition of a region. A region with an unknown beginning is one of the partition `aws`, which grows most.
    pub(crate) fn of(region: &str) -> &'static Self {
        let [.., rest] = &PARTITIONS;
        PARTITIONS.iter().find(|partition| region.starts_with(partition.prefix)).unwrap_or(rest)
    }

    /// The usual endpoint of a service in a region: `sts.eu-west-1.amazonaws.com`.
    pub(crate) fn endpoint(service: &str, region: &str) -> String {
        format!("{service}.{region}.{}", Self::of(region).suffix)
    }

    /// Whether `host` is the endpoint of `service` in `region`: the usual one, FIPS, dual-stack, both, or a VPC endpoint
    /// (AWS SDKs and Tools Reference Guide, "Dual-stack and FIPS endpoints"; AWS PrivateLink, "Interface endpoint DNS
    /// names").
    #[cfg(feature = "launcher")]
    pub(crate) fn is_endpoint(host: &str, service: &str, region: &str) -> bool {
        let Self { suffix, dual_stack_suffix, .. } = Self::of(region);
        let label = |label: &str| !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        let public = [service.to_owned(), format!("{service}-fips")].iter().any(|service| {
            [suffix, dual_stack_suffix].iter().any(|suffix| host == format!("{service}.{region}.{suffix}"))
        });
        let vpc_endpoint = host.strip_suffix(&format!(".{service}.{region}.vpce.{suffix}"));
        public || vpc_endpoint.is_some_and(|start| start.starts_with("vpce-") && label(start))
    }

    /// What stands before the domain of a partition in `host`: `sts.eu-west-1`.
    #[cfg(feature = "relay")]
    pub(crate) fn without_domain(host: &str) -> Option<&str> {
        PARTITIONS.iter().find_map(|partition| host.strip_suffix(partition.suffix)?.strip_suffix('.'))
    }

    /// Whether `host` is a name below the domain of some partition, as all endpoints of AWS are.
    #[cfg(feature = "launcher")]
    pub(crate) fn owns(host: &str) -> bool {
        let below =
            |domain: &str| host.strip_suffix(domain).is_some_and(|start| start.len() > 1 && start.ends_with('.'));
        PARTITIONS.iter().any(|partition| below(partition.suffix) || below(partition.dual_stack_suffix))
    }
}

#[cfg(all(test, feature = "launcher"))]
mod tests {
    use super::*;

    #[test]
    fn each_region_has_the_endpoint_of_its_partition() {
        for (region, id, host) in [
            ("eu-west-1", "aws", "sts.eu-west-1.amazonaws.com"),
            ("mx-central-1", "aws", "sts.mx-central-1.amazonaws.com"),
            ("us-gov-west-1", "aws-us-gov", "sts.us-gov-west-1.amazonaws.com"),
            ("cn-north-1", "aws-cn", "sts.cn-north-1.amazonaws.com.cn"),
            ("eusc-de-east-1", "aws-eusc", "sts.eusc-de-east-1.amazonaws.eu"),
            ("us-iso-east-1", "aws-iso", "sts.us-iso-east-1.c2s.ic.gov"),
            ("us-isob-east-1", "aws-iso-b", "sts.us-isob-east-1.sc2s.sgov.gov"),
            ("eu-isoe-west-1", "aws-iso-e", "sts.eu-isoe-west-1.cloud.adc-e.uk"),
            ("us-isof-south-1", "aws-iso-f", "sts.us-isof-south-1.csp.hci.ic.gov"),
            ("xx-new-1", "aws", "sts.xx-new-1.amazonaws.com"),
        ] {
            assert_eq!((Partition::of(region).id, Partition::endpoint("sts", region).as_str()), (id, host));
            assert!(Partition::is_endpoint(host, "sts", region) && Partition::owns(host), "{host}");
        }
    }

    #[test]
    fn an_endpoint_is_one_of_its_service_region_and_partition() {
        for (host, region) in [
            ("sts-fips.us-east-1.amazonaws.com", "us-east-1"),
            ("sts.eu-west-1.api.aws", "eu-west-1"),
            ("sts-fips.us-east-1.api.aws", "us-east-1"),
            ("sts.cn-north-1.api.amazonwebservices.com.cn", "cn-north-1"),
            ("sts.eusc-de-east-1.api.amazonwebservices.eu", "eusc-de-east-1"),
            ("vpce-0a1b-2c3d.sts.eu-west-1.vpce.amazonaws.com", "eu-west-1"),
            ("vpce-0a1b-2c3d-eu-west-1a.sts.eu-west-1.vpce.amazonaws.com", "eu-west-1"),
            ("vpce-0a1b.sts.cn-north-1.vpce.amazonaws.com.cn", "cn-north-1"),
        ] {
            assert!(Partition::is_endpoint(host, "sts", region), "{host}");
        }
        for host in [
            "",
            "sts.amazonaws.com",
            "sts.eu-west-2.amazonaws.com",
            "sts.eu-west-1.amazonaws.com.cn",
            "sts.eu-west-1.amazonaws.com.evil.example",
            "sts.eu-west-1.amazonaws.com:444",
            "iam.eu-west-1.amazonaws.com",
            "sts.eu-west-1.api.aws.evil.example",
            "vpce-0a1b.execute-api.eu-west-1.vpce.amazonaws.com",
            "evil.sts.eu-west-1.vpce.amazonaws.com",
            "vpce-evil.example/.sts.eu-west-1.vpce.amazonaws.com",
            "vpce-a.b.sts.eu-west-1.vpce.amazonaws.com",
        ] {
            assert!(!Partition::is_endpoint(host, "sts", "eu-west-1"), "{host}");
        }
    }

    #[test]
    fn only_names_below_a_domain_of_aws_are_its_own() {
        for host in ["ssmmessages.eu-west-1.amazonaws.com", "vpce-1.ssmmessages.eu-west-1.vpce.amazonaws.com"] {
            assert!(Partition::owns(host), "{host}");
        }
        for host in
            ["", "amazonaws.com", ".amazonaws.com", "notamazonaws.com", "x.amazonaws.com.evil.example", "api.aws"]
        {
            assert!(!Partition::owns(host), "{host}");
        }
    }
}
