//! What the name of an RDS endpoint says.

use crate::types::Partition;

/// The labels of `host` before its domain, if it is a name of RDS, and where the label of the service is among them.
fn labels(host: &str) -> Option<(Vec<&str>, usize)> {
    let host = host.trim_end_matches('.');
    let labels: Vec<&str> = Partition::without_domain(host)?.split('.').collect();
    let service = labels.iter().rposition(|label| *label == "rds" || label.starts_with("rds-"))?;
    Some((labels, service))
}

/// The region: `NAME.ID.REGION.rds.amazonaws.com`, and in some partitions `NAME.ID.rds.REGION.amazonaws.com.cn`.
pub(crate) fn region(host: &str) -> Option<&str> {
    let (labels, service) = labels(host)?;
    let beside = [service.checked_sub(1), service.checked_add(1)];
    beside.into_iter().flatten().filter_map(|at| labels.get(at)).copied().find(|label| looks_like_region(label))
}

/// `eu-west-1`, `us-gov-east-1`: words, and a number at the end.
fn looks_like_region(text: &str) -> bool {
    let Some((words, number)) = text.rsplit_once('-') else { return false };
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    words.contains('-')
        && words.split('-').all(is_word)
        && !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether it is an endpoint of RDS Proxy: `NAME.proxy-ID.REGION…`, `NAME.endpoint.proxy-ID.REGION…`.
pub(crate) fn is_proxy(host: &str) -> bool {
    labels(host)
        .is_some_and(|(labels, service)| labels.iter().take(service).skip(1).any(|label| label.starts_with("proxy-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_says_its_region() {
        for (host, wanted) in [
            ("orders.abc123.eu-west-1.rds.amazonaws.com", Some("eu-west-1")),
            ("orders.abc123.eu-west-1.rds.amazonaws.com.", Some("eu-west-1")),
            ("orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com", Some("ap-northeast-1")),
            ("orders.cluster-ro-abc123.us-east-2.rds.amazonaws.com", Some("us-east-2")),
            ("reports.cluster-custom-abc123.us-east-2.rds.amazonaws.com", Some("us-east-2")),
            ("pool.proxy-abc123.eu-central-1.rds.amazonaws.com", Some("eu-central-1")),
            ("ro.endpoint.proxy-abc123.eu-central-1.rds.amazonaws.com", Some("eu-central-1")),
            ("orders.abc123.us-gov-west-1.rds.amazonaws.com", Some("us-gov-west-1")),
            ("orders.abc123.us-gov-west-1.rds-fips.amazonaws.com", Some("us-gov-west-1")),
            ("orders.abc123.rds.us-gov-west-1.amazonaws.com", Some("us-gov-west-1")),
            ("orders.abc123.cn-north-1.rds.amazonaws.com.cn", Some("cn-north-1")),
            ("orders.abc123.rds.cn-northwest-1.amazonaws.com.cn", Some("cn-northwest-1")),
            ("orders.abc123.eusc-de-east-1.rds.amazonaws.eu", Some("eusc-de-east-1")),
            ("orders.abc123.rds.us-iso-east-1.c2s.ic.gov", Some("us-iso-east-1")),
            // A name of one's own, another service, and names that only look alike.
            ("db.example.com", None),
            ("orders.eu-west-1.rds.example.com", None),
            ("orders.abc123.eu-west-1.redshift.amazonaws.com", None),
            ("orders.abc123.rds.amazonaws.com", None),
            ("eu-west-1.rds.amazonaws.com.example.com", None),
            ("rds.xamazonaws.com", None),
            ("", None),
        ] {
            assert_eq!(region(host), wanted, "{host}");
        }
    }

    #[test]
    fn regions_are_told_from_other_labels() {
        for (text, wanted) in [
            ("eu-west-1", true),
            ("us-gov-east-1", true),
            ("ap-southeast-12", true),
            ("eu-west", false),
            ("euwest1", false),
            ("west-1", false),
            ("eu--1", false),
            ("EU-WEST-1", false),
            ("eu-west-1a", false),
            ("eu-west-", false),
        ] {
            assert_eq!(looks_like_region(text), wanted, "{text}");
        }
    }

    #[test]
    fn an_endpoint_of_rds_proxy_is_known() {
        for (host, wanted) in [
            ("pool.proxy-abc123.eu-central-1.rds.amazonaws.com", true),
            ("ro.endpoint.proxy-abc123.eu-central-1.rds.amazonaws.com", true),
            ("pool.proxy-abc123.rds.cn-north-1.amazonaws.com.cn", true),
            ("proxy-orders.abc123.eu-central-1.rds.amazonaws.com", false),
            ("orders.cluster-abc123.eu-central-1.rds.amazonaws.com", false),
            ("pool.proxy-abc123.example.com", false),
        ] {
            assert_eq!(is_proxy(host), wanted, "{host}");
        }
    }
}
