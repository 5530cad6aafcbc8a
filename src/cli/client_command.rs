//! The line that connects a command-line client, for a person to copy into a shell: to the local port, whatever the relay says
//! that user and database are called.

use crate::cli::escape::shell;

/// `shows_password`: the client shows the password of the task, and nobody else who listens on the port may be told it.
pub(super) fn psql(port: u16, user: &str, database: Option<&str>, shows_password: bool) -> Option<String> {
    // libpq before 16 ignores the variable, and would refuse a parameter of this name (PostgreSQL manual 34.15).
    let proof = if shows_password { "PGREQUIREAUTH=scram-sha-256 " } else { "" };
    let database = match database {
        Some(database) => format!(" -d {}", shell(&psql_database(database))?),
        None => String::new(),
    };
    Some(format!("{proof}psql -h localhost -p {port} -U {}{database}", shell(user)?))
}

/// A database for `psql -d`, which takes what looks like a connection string for one, with a host of its own (PostgreSQL
/// manual 34.1.1).
fn psql_database(name: &str) -> String {
    if !name.contains('=') && !name.contains("://") {
        return name.to_owned();
    }
    format!("dbname='{}'", name.replace('\\', r"\\").replace('\'', r"\'"))
}

pub(super) fn mysql(port: u16, user: &str, database: Option<&str>) -> Option<String> {
    let database = match database {
        // It would be an option itself.
        Some(database) if database.starts_with('-') => format!(" --database={}", shell(database)?),
        Some(database) => format!(" {}", shell(database)?),
        None => String::new(),
    };
    Some(format!("mysql -h 127.0.0.1 -P {port} -u {} --protocol=tcp{database}", shell(user)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_database_is_more_than_that() {
        for (database, rest) in [
            ("orders", "orders"),
            ("orders; touch x", "'orders; touch x'"),
            ("host=evil.example.com", r"'dbname='\''host=evil.example.com'\'''"),
            ("postgres://evil", r"'dbname='\''postgres://evil'\'''"),
            (r"a'\=b", r"'dbname='\''a\'\''\\=b'\'''"),
            ("-x", "-x"),
        ] {
            let wanted = format!("psql -h localhost -p 15432 -U db_read -d {rest}");
            assert_eq!(psql(15432, "db_read", Some(database), false), Some(wanted));
        }
        for (database, rest) in
            [("events", "events"), ("a b", "'a b'"), ("--init-command=x", "--database=--init-command=x")]
        {
            let wanted = format!("mysql -h 127.0.0.1 -P 13306 -u '$(id)' --protocol=tcp {rest}");
            assert_eq!(mysql(13306, "$(id)", Some(database)), Some(wanted));
        }
        assert_eq!((psql(1, "a\u{1b}", None, false), mysql(1, "u", Some("a\nb"))), (None, None));
    }
}
