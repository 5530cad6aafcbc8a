//! Names that a request to STS may be signed for.

#[cfg(feature = "launcher")]
use crate::types::Partition;

/// The global endpoint, whose signatures are scoped to this region (AWS General Reference, "STS endpoints").
#[cfg(feature = "launcher")]
const GLOBAL: (&str, &str) = ("sts.amazonaws.com", "us-east-1");

/// An endpoint of STS, and the region that signatures for it are scoped to. There is no other way to one than these
/// constructors, and nothing but one can be signed for: a name that somebody else chose could be a whole URL.
#[cfg(feature = "launcher")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StsHost {
    authority: String,
    region: String,
}

#[cfg(feature = "launcher")]
impl StsHost {
    /// `host`, if it is an endpoint of STS in `region`: its public name, FIPS, dual-stack, or that of a VPC endpoint. All of
    /// it is labels of lower-case letters, digits and hyphens, so there is no port, no path, no query and no user.
    pub(crate) fn parse(host: &str, region: &str) -> Option<Self> {
        let is_sts = is_label(region) && host.split('.').all(is_label) && Partition::is_endpoint(host, "sts", region);
        is_sts.then(|| Self { authority: host.to_owned(), region: region.to_owned() })
    }

    pub(crate) fn global() -> Self {
        let (host, region) = GLOBAL;
        Self { authority: host.to_owned(), region: region.to_owned() }
    }

    /// The host and port that the person's own settings (`AWS_ENDPOINT_URL`) put in the place of all of AWS.
    pub(crate) fn own_endpoint(authority: &str, region: &str) -> Option<Self> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
        let is_good = is_label(region) && !authority.is_empty() && authority.chars().all(is_plain);
        is_good.then(|| Self { authority: authority.to_owned(), region: region.to_owned() })
    }

    /// The value of `Host`.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn region(&self) -> &str {
        &self.region
    }
}

/// Whether `text` can be the name of a region, and so a label of a host name.
pub(crate) fn is_region(text: &str) -> bool {
    is_label(text)
}

/// One label of a DNS name, as AWS writes them (RFC 1123).
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(all(test, feature = "launcher"))]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_sts_in_the_region_parse() {
        for (host, region) in [
            ("sts.eu-west-1.amazonaws.com", "eu-west-1"),
            ("sts-fips.us-east-1.amazonaws.com", "us-east-1"),
            ("sts.eu-west-1.api.aws", "eu-west-1"),
            ("sts.cn-north-1.amazonaws.com.cn", "cn-north-1"),
            ("vpce-0a1b-2c3d-eu-west-1a.sts.eu-west-1.vpce.amazonaws.com", "eu-west-1"),
        ] {
            let parsed = StsHost::parse(host, region).unwrap();
            assert_eq!((parsed.authority(), parsed.region()), (host, region));
        }
        let vpce = |start: &str| format!("{start}.sts.eu-west-1.vpce.amazonaws.com");
        let attack = format!("{}/?Action=AssumeRole&RoleArn=x&z={}", vpce("vpce-0a1b"), vpce(""));
        for host in [
            &attack,
            &vpce("vpce-a/b"),
            &vpce("vpce-a.b"),
            &vpce("vpce-A"),
            &vpce("x@vpce-a"),
            &vpce("vpce-a:443"),
            &vpce("vpce-a#"),
            &vpce("vpce-é"),
            &vpce("vpce-"),
            "sts.eu-west-1.amazonaws.com.",
            "sts.eu-west-1.amazonaws.com:443",
            "sts.eu-west-1.amazonaws.com/",
            "sts.eu-west-1.amazonaws.com\n",
            "STS.eu-west-1.amazonaws.com",
            "sts.amazonaws.com",
            "",
        ] {
            assert_eq!(StsHost::parse(host, "eu-west-1"), None, "{host:?}");
        }
        for region in ["", "eu-west-1.evil.example/", "EU-WEST-1", "eu_west", "eu-west-1\n", "evil.example/#"] {
            assert_eq!(StsHost::parse(&format!("sts.{region}.amazonaws.com"), region), None, "{region:?}");
        }
    }

    #[test]
    fn an_own_endpoint_is_a_host_with_or_without_port() {
        for good in ["127.0.0.1:4566", "localhost", "[::1]:4566"] {
            assert_eq!(StsHost::own_endpoint(good, "eu-west-1").unwrap().authority(), good);
        }
        for bad in ["", "a@b", "a/b", "a?b", "a#b", "a b", "a\nb"] {
            assert_eq!(StsHost::own_endpoint(bad, "eu-west-1"), None, "{bad:?}");
        }
    }
}
