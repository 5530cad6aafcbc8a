//! Who a caller is, and which callers a task lets in.

use std::fmt;

/// The longest ARN: a path of 512 characters and its names (IAM API Reference, `arnType`).
const ARN_MAX: usize = 2048;

/// A caller as `GetCallerIdentity` names it, in a form that can be compared: an assumed role without the path that IAM
/// Identity Center and people write before its name, which is unique in the account without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    partition: String,
    service: String,
    account: String,
    /// `assumed-role/ROLE/SESSION`, `user/PATH/NAME`, `root`, `federated-user/NAME`
    resource: String,
}

/// What is wrong with the text of a principal or pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotAPrincipal(&'static str);

impl Principal {
    pub(crate) fn parse(arn: &str) -> Result<Self, NotAPrincipal> {
        let known = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-/:".contains(c);
        let arn = arn.trim();
        if arn.len() > ARN_MAX || !arn.chars().all(known) {
            return Err(NotAPrincipal("is too long or has characters that no ARN has"));
        }
        Self::split(arn)
    }

    fn split(arn: &str) -> Result<Self, NotAPrincipal> {
        let fields: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", partition, service @ ("sts" | "iam"), "", account, resource] = fields[..] else {
            return Err(NotAPrincipal("is not the ARN of an assumed role or a user"));
        };
        if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NotAPrincipal("has no account of 12 digits"));
        }
        if partition.is_empty() || resource.contains(':') {
            return Err(NotAPrincipal("is not the ARN of an assumed role or a user"));
        }
        let parts: Vec<&str> = resource.split('/').collect();
        let resource = match (service, &parts[..]) {
            ("sts", ["assumed-role", .., role, session]) if !role.is_empty() && !session.is_empty() => {
                format!("assumed-role/{role}/{session}")
            }
            ("sts", ["federated-user", name]) if !name.is_empty() => resource.to_owned(),
            ("iam", ["user", .., name]) if !name.is_empty() => resource.to_owned(),
            ("iam", ["root"]) => resource.to_owned(),
            _ => return Err(NotAPrincipal("is not the ARN of an assumed role with its session name, or of a user")),
        };
        Ok(Self { partition: partition.to_owned(), service: service.to_owned(), account: account.to_owned(), resource })
    }

    pub(super) fn account(&self) -> &str {
        &self.account
    }

    /// The name of the session of an assumed role, or of the user.
    pub(crate) fn name(&self) -> &str {
        self.resource.rsplit('/').next().unwrap_or(&self.resource)
    }

    /// Whether this is a session of a role, whose user id ends with the session's name.
    pub(super) fn is_session(&self) -> bool {
        self.resource.starts_with("assumed-role/")
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, service, account, resource } = self;
        write!(f, "arn:{partition}:{service}::{account}:{resource}")
    }
}

/// The ARN of callers who may come besides the owner; a `*` stands for any characters but `/`. The account has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(Principal);

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, NotAPrincipal> {
        // A legal character that no pattern needs stands in for the star while the rest is checked.
        let plain = text.trim().replace('*', "_");
        Principal::parse(&plain)?;
        let pattern = Principal::split(text.trim())?;
        match pattern.partition.contains('*') {
            true => Err(NotAPrincipal("has a * outside of the resource")),
            false => Ok(Self(pattern)),
        }
    }

    pub(super) fn matches(&self, who: &Principal) -> bool {
        let Principal { partition, service, account, resource } = &self.0;
        *partition == who.partition
            && *service == who.service
            && *account == who.account
            && glob(resource.as_bytes(), who.resource.as_bytes())
    }
}

/// `*` in `pattern` matches any bytes but `/`; linear in time and space but for the backtracking of one star.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, from)) if text[from] != b'/' => {
                    star = Some((after, from + 1));
                    p = after;
                    t = from + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "arn:aws:sts::123456789012:assumed-role/Developer/alice";

    #[test]
    fn the_session_name_is_part_of_the_person_and_the_path_is_not() {
        let alice = Principal::parse(ALICE).unwrap();
        assert_eq!((alice.name(), alice.account(), alice.to_string().as_str()), ("alice", "123456789012", ALICE));
        let with_path = "arn:aws:sts::123456789012:assumed-role/aws-reserved/sso.amazonaws.com/Developer/alice ";
        assert_eq!(Principal::parse(with_path).unwrap(), alice);
        for other in [
            ALICE.replace("alice", "bob"),
            ALICE.replace("alice", "Alice"),
            ALICE.replace("Developer", "Admin"),
            ALICE.replace("123456789012", "123456789013"),
            ALICE.replace("aws:", "aws-cn:"),
        ] {
            assert_ne!(Principal::parse(&other).unwrap(), alice, "{other}");
        }
        let user = Principal::parse("arn:aws:iam::123456789012:user/staff/eva").unwrap();
        assert_eq!(user.name(), "eva");
        assert_ne!(user, Principal::parse("arn:aws:iam::123456789012:user/eva").unwrap());
    }

    #[test]
    fn what_is_no_caller_is_refused() {
        for bad in [
            "",
            "alice",
            "arn:aws:iam::123456789012:role/Developer",
            "arn:aws:sts::123456789012:assumed-role/Developer",
            "arn:aws:sts::123456789012:assumed-role/Developer/",
            "arn:aws:sts::1234:assumed-role/Developer/alice",
            "arn:aws:sts:eu-west-1:123456789012:assumed-role/Developer/alice",
            "arn:aws:s3:::bucket/assumed-role/Developer/alice",
            "arn:aws:sts::123456789012:assumed-role/Developer/al ice",
            "arn:aws:sts::123456789012:assumed-role/Developer/*",
        ] {
            assert!(Principal::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_match_within_one_part_of_one_account() {
        let matches =
            |pattern: &str, arn: &str| Pattern::parse(pattern).unwrap().matches(&Principal::parse(arn).unwrap());
        let role = "arn:aws:sts::123456789012:assumed-role/OnCall";
        assert!(matches(&format!("{role}/*"), &format!("{role}/alice")));
        assert!(matches(&format!("{role}/a*e"), &format!("{role}/alice")));
        assert!(!matches(&format!("{role}/a*e"), &format!("{role}/alicex")));
        assert!(!matches(&format!("{role}/*"), "arn:aws:sts::123456789012:assumed-role/OnCallX/alice"));
        assert!(!matches(&format!("{role}/*"), "arn:aws:sts::123456789013:assumed-role/OnCall/alice"));
        let users = "arn:aws:iam::123456789012:user/*";
        assert!(matches(users, "arn:aws:iam::123456789012:user/eva"));
        assert!(!matches(users, "arn:aws:iam::123456789012:user/staff/eva"));
        for bad in ["*", "arn:aws:sts::*:assumed-role/OnCall/x", "arn:*:sts::123456789012:assumed-role/OnCall/x"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }
}
