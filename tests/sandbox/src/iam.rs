//! Who may do what, as far as the launcher's calls need it: an identity and its allowed `action` or `action resource`
//! patterns, where a `*` at the end matches anything.

use std::time::SystemTime;

/// A caller with its keys.
#[derive(Debug, Clone)]
pub struct Identity {
    pub access_key: String,
    pub secret_key: String,
    pub session_token: Option<String>,
    pub expires_at: Option<SystemTime>,
    pub arn: String,
    /// `ecs:RunTask`, `ssm:*` or `ssm:StartSession arn:…*`
    pub allow: Vec<String>,
}

/// What the developer policy allows; the launcher makes no other call.
pub const DEVELOPER: [&str; 11] = [
    "sts:GetCallerIdentity",
    "ecs:RunTask arn:aws:ecs:ap-northeast-1:123456789012:task-definition/bastion-*",
    "iam:PassRole arn:aws:iam::123456789012:role/bastion-*",
    "ecs:TagResource",
    "ecs:ListTasks",
    "ecs:DescribeTasks",
    "ecs:StopTask",
    "ssm:GetParameter arn:aws:ssm:ap-northeast-1:123456789012:parameter/bastion/*",
    "ssm:StartSession",
    "ssm:ResumeSession",
    "ssm:TerminateSession",
];

impl Identity {
    /// An assumed-role session of the sandbox's account, with keys made from its name.
    pub fn session(role: &str, name: &str, allow: &[&str]) -> Self {
        Self {
            access_key: format!("ASIA{:0<16}", name.to_uppercase()),
            secret_key: format!("{name}-secret-key-of-the-sandbox-only"),
            session_token: Some(format!("{name}-session-token-of-the-sandbox-only")),
            expires_at: None,
            arn: format!("arn:aws:sts::{}:assumed-role/{role}/{name}", crate::ACCOUNT),
            allow: allow.iter().map(|&pattern| pattern.to_owned()).collect(),
        }
    }

    /// The part of `aws:userid` that names session ids: the session's name.
    pub fn session_name(&self) -> &str {
        self.arn.rsplit('/').next().unwrap_or_default()
    }

    /// # Errors
    /// The sentence that AWS gives with AccessDenied.
    pub fn authorize(&self, action: &str, resource: &str) -> Result<(), String> {
        let allowed = self.allow.iter().any(|pattern| {
            let (actions, resources) = pattern.split_once(' ').unwrap_or((pattern, "*"));
            matches(actions, action) && matches(resources, resource)
        });
        if allowed {
            return Ok(());
        }
        Err(format!(
            "User: {} is not authorized to perform: {action} on resource: {resource} because no identity-based policy \
             allows the {action} action",
            self.arn
        ))
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_developer_runs_bastions_and_nothing_else() {
        let alice = Identity::session("Developer", "alice", &DEVELOPER);
        let definition = |family: &str| format!("arn:aws:ecs:ap-northeast-1:123456789012:task-definition/{family}:1");
        assert_eq!(alice.authorize("ecs:RunTask", &definition("bastion-demo-read")), Ok(()));
        let refused = alice.authorize("ecs:RunTask", &definition("admin")).unwrap_err();
        assert!(refused.contains("alice is not authorized to perform: ecs:RunTask on resource"), "{refused}");
        assert!(alice.authorize("ecs:ExecuteCommand", "*").is_err());
    }
}
