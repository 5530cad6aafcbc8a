//! What to do when there is no credential: the next step for each cause.

use crate::credential::{MintError, SecretError};

/// One sentence or two for the client.
pub(super) fn credential(reason: &MintError) -> &'static str {
    match reason {
        MintError::NoTaskRole => "Set taskRoleArn in the task definition; the execution role is not enough.",
        MintError::Endpoint(_) | MintError::Timeout(_) => {
            "Try again; if it stays so, check that the task role exists and that ecs-tasks.amazonaws.com may assume it."
        }
        MintError::Sign(_) => "Check region, host and user of the target in the relay's configuration.",
        MintError::Secret { error, .. } => secret(error),
    }
}

fn secret(reason: &SecretError) -> &'static str {
    match reason {
        SecretError::Denied => {
            "Allow the task role secretsmanager:GetSecretValue on this secret; if the secret has a resource policy, or is in \
             another account, that must allow the role as well."
        }
        SecretError::Deleted => {
            "Restore it (aws secretsmanager restore-secret), or name the secret that took its place in the configuration."
        }
        SecretError::Flawed(_) => {
            "Write the secret as JSON with the keys username and password; host, port, dbname and engine are optional."
        }
        SecretError::Kms => {
            "Allow the task role kms:Decrypt on the key of the secret, in the role's policy and in the key's policy, and check \
             that the key is enabled."
        }
        SecretError::NotFound { .. } => {
            "Check secret_id and region in the target's configuration; a secret of another account is named by its whole ARN."
        }
        SecretError::Refused(_) => "Look into CloudTrail for the GetSecretValue call of the task role.",
        SecretError::Throttled => "Try again in a minute.",
        SecretError::Unreachable(_) => {
            "Give the task's subnets a way to Secrets Manager: a VPC endpoint (com.amazonaws.REGION.secretsmanager) whose \
             security group lets the task in on port 443, or NAT."
        }
    }
}
