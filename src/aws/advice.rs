//! The next step for the person: how to log in again, and who can mend a refusal.

use crate::aws::profile::Kind;

/// What is to be done to log in again, by how one has logged in.
pub(super) fn again(profile: Option<&str>, kind: Kind) -> String {
    let named =
        profile.filter(|name| *name != "default").map(|name| format!(" --profile {}", word(name))).unwrap_or_default();
    match kind {
        Kind::Sso => format!("run `aws sso login{named}`"),
        Kind::Console => format!("run `aws login{named}`"),
        Kind::Keys => format!("put new access keys into the profile with `aws configure{named}`"),
        Kind::Process => "log in to the program of credential_process in that profile".to_owned(),
        Kind::WebIdentity => "get a new token for web_identity_token_file; those of a CI job end with it".to_owned(),
        Kind::Environment => {
            "keys in variables are not renewed: set new ones, or unset AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and \
             AWS_SESSION_TOKEN and name a profile"
                .to_owned()
        }
        Kind::Other => format!("log in with `aws login{named}` or `aws sso login{named}`, or get new access keys"),
    }
}

/// A word of a shell's command line.
pub(super) fn word(text: &str) -> String {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./@%+=:,".contains(c));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Who can mend a refusal that another kind of policy than the developer's has caused, as AWS's message tells it (IAM User
/// Guide, "Troubleshoot access denied error messages").
pub(super) fn denied_by(message: &str) -> Option<String> {
    const KINDS: [(&str, &str); 7] = [
        ("service control policy", "the administrator of the AWS organisation"),
        ("resource control policy", "the administrator of the AWS organisation"),
        ("permissions boundary", "whoever set the permissions boundary of this user or role"),
        ("session policy", "whoever gives out these credentials"),
        ("VPC endpoint policy", "whoever looks after the VPC endpoint"),
        ("resource-based policy", "the owner of the resource"),
        ("identity-based policy", "whoever attached it to this user or role"),
    ];
    let explicit = message.contains("explicit deny");
    let kind = KINDS.iter().find(|(kind, _)| {
        message.contains(&format!("explicit deny in a {kind}"))
            || message.contains(&format!("explicit deny in an {kind}"))
            || message.contains(&format!("because no {kind} allows"))
    });
    match kind {
        // That is what the developer policy is for.
        Some(("identity-based policy", _)) if !explicit => None,
        Some((kind, who)) if explicit => {
            let article = if kind.starts_with('i') { "an" } else { "a" };
            Some(format!("{article} {kind} denies it, which no other policy can outweigh: ask {who} for an exception"))
        }
        Some((kind, who)) => Some(format!("no {kind} allows it: ask {who}")),
        None if explicit => {
            Some("a policy denies it, which no other can outweigh: ask an administrator which".to_owned())
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_to_log_in_again_is_told_by_how_one_has_logged_in() {
        for (profile, kind, part) in [
            (Some("dev"), Kind::Sso, "run `aws sso login --profile dev`"),
            (Some("default"), Kind::Sso, "run `aws sso login`"),
            (Some("o'brien x"), Kind::Console, r"run `aws login --profile 'o'\''brien x'`"),
            (Some("dev"), Kind::Keys, "`aws configure --profile dev`"),
            (Some("dev"), Kind::Process, "credential_process"),
            (None, Kind::Environment, "keys in variables are not renewed"),
        ] {
            let hint = again(profile, kind);
            assert!(hint.contains(part), "{kind:?}: {hint}");
        }
    }

    #[test]
    fn a_refusal_names_who_can_mend_it() {
        let start = "User: arn:aws:sts::1:assumed-role/x/y is not authorized to perform: ssm:StartSession";
        assert_eq!(
            denied_by(&format!("{start} because no identity-based policy allows the ssm:StartSession action")),
            None
        );
        for (end, part) in [
            (
                "with an explicit deny in a service control policy: arn:aws:organizations::1:policy/o-1/p-1",
                "the AWS organisation",
            ),
            ("with an explicit deny in an identity-based policy", "an identity-based policy denies it"),
            ("with an explicit deny in a resource control policy", "the AWS organisation"),
            ("with an explicit deny in a VPC endpoint policy", "the VPC endpoint"),
            ("with an explicit deny in a session policy", "gives out these credentials"),
            ("with an explicit deny", "which no other can outweigh"),
            ("because no permissions boundary allows the ssm:StartSession action", "no permissions boundary allows it"),
            (
                "because no service control policy allows the ssm:StartSession action",
                "no service control policy allows it",
            ),
        ] {
            let hint = denied_by(&format!("{start} {end}")).unwrap();
            assert!(hint.contains(part), "{end}: {hint}");
        }
    }
}
