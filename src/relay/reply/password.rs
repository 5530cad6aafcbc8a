//! Why a password login did not work, for passwords that the relay has from somewhere. Short, as in `iam`.

use bastion_wire::error_text::ErrorText;

use crate::relay::reply::behind;
use crate::types::{Engine, Target};

/// The database does not accept the login of a secret. Every version of the secret was tried, so it is not a rotation
/// under way.
pub(super) fn refused(said: &ErrorText, target: &Target, user: &str, secret_id: &str) -> ErrorText {
    let name = &target.name;
    let ours = format!("bastion: target {name} refused the login of {user} from secret {secret_id}");
    let detail = match target.engine {
        Engine::Mysql => String::new(),
        Engine::Postgres | Engine::Tcp => format!(
            "Likely causes: 1. the password in the secret is not the database's: it was changed by hand, or a rotation \
             failed. 2. {user} does not exist in this database, or may not log in to it."
        ),
    };
    let hint =
        format!("Let whoever keeps the secret rotate it (aws secretsmanager rotate-secret --secret-id {secret_id})");
    behind(said, target, &ours, &detail, &hint)
}

/// The database does not accept a user that Vault has made, and a new one was tried.
pub(super) fn vault_refused(said: &ErrorText, target: &Target, user: &str) -> ErrorText {
    let name = &target.name;
    let ours = format!("bastion: target {name} refused the login of {user} from Vault");
    let hint = "Check that Vault's database connection leads to this very database, and that its creation statements give \
                a user that may log in.";
    behind(said, target, &ours, "", hint)
}
