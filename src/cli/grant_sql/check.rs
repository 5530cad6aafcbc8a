//! One login through the relay, as a client of the laptop would make it: the relay in the task logs in to the database,
//! and what it says when it cannot is the answer.

use std::net::Ipv4Addr;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_postgres::NoTls;

use crate::api::targets::Target;
use crate::tunnel::client;
use crate::tunnel::lanes::Lanes;
use crate::tunnel::peer::Peers;
use crate::types::Engine;

/// Longer than the relay gives a login.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);
/// The relay logs in as the target's user, whatever a client says.
const ANYONE: &str = "bastion";

/// Tables of people, views included (PostgreSQL manual 53.11, `relkind`), and what may be done with them.
const POSTGRES: &str = "
select current_user::text, current_setting('server_version'), current_database()::text,
  coalesce((select pg_has_role(current_user, oid, 'member') from pg_roles where rolname = 'rds_iam'), false),
  count(*), count(*) filter (where has_table_privilege(oid, 'SELECT')),
  count(*) filter (where has_table_privilege(oid, 'INSERT')),
  count(*) filter (where has_table_privilege(oid, 'UPDATE')),
  count(*) filter (where has_table_privilege(oid, 'DELETE')),
  has_database_privilege(current_database(), 'CREATE')
    or exists (select from pg_namespace where nspname = 'public' and has_schema_privilege(oid, 'CREATE'))
from pg_class where relkind in ('r', 'p', 'v', 'm', 'f')
  and relnamespace in (select oid from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema')";

/// What a login has shown.
pub(super) struct Found {
    pub(super) user: String,
    pub(super) server: String,
    /// Sentences, or GRANT statements.
    pub(super) rights: Vec<String>,
}

/// `None`: clients log in to this target themselves. The error is the sentence of relay or database.
pub(super) async fn check(
    lanes: &Lanes,
    served: &Target,
    password: Option<&SecretString>,
) -> Option<Result<Found, String>> {
    let engine = served.engine();
    if engine == Engine::Tcp || served.credential == "client" {
        return None;
    }
    let checking = async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| error.to_string())?;
        let port = listener.local_addr().map_err(|error| error.to_string())?.port();
        let carrying = async {
            let peers = Peers::new(port);
            // The port is open to others too; the login is that of this program.
            while let Ok((stream, _)) = listener.accept().await {
                if peers.admit(&stream).await.is_ok() {
                    // What goes wrong is told to the client.
                    let _told = Box::pin(client::carry(lanes, &served.name, engine, stream)).await;
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let asking = async {
            match engine {
                Engine::Mysql => ask_mysql(port, password).await,
                Engine::Postgres | Engine::Tcp => ask_postgres(port, served, password).await,
            }
        };
        tokio::select! {
            found = asking => found,
            () = carrying => Err(String::new()),
        }
    };
    let checked = tokio::time::timeout(CHECK_TIMEOUT, checking).await;
    Some(checked.unwrap_or_else(|_| Err(format!("no answer within {} s", CHECK_TIMEOUT.as_secs()))))
}

async fn ask_postgres(port: u16, served: &Target, password: Option<&SecretString>) -> Result<Found, String> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user(ANYONE).application_name("bastion grant-sql");
    // For a target without a database of its own.
    config.dbname(served.database.as_deref().unwrap_or("postgres"));
    if let Some(password) = password {
        config.password(password.expose_secret());
    }
    let (client, connection) = config.connect(NoTls).await.map_err(|error| postgres_error(&error))?;
    let row = tokio::select! {
        row = client.query_one(POSTGRES, &[]) => row,
        ended = connection => match ended {
            Err(error) => Err(error),
            Ok(()) => return Err("the connection ended before the answer".to_owned()),
        },
    };
    let row = row.map_err(|error| postgres_error(&error))?;
    let read = || -> Result<Found, tokio_postgres::Error> {
        let (user, version, database): (String, String, String) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let (iam, may_create): (bool, bool) = (row.try_get(3)?, row.try_get(9)?);
        let count = |column: usize| row.try_get::<_, i64>(column);
        let mut rights = vec![format!(
            "may select from {} of {} tables in {database}, insert into {}, update {}, delete from {}",
            count(5)?,
            count(4)?,
            count(6)?,
            count(7)?,
            count(8)?
        )];
        rights.push(format!("may {}create objects in {database}", if may_create { "" } else { "not " }));
        rights.push(format!("is {}a member of rds_iam", if iam { "" } else { "not " }));
        Ok(Found { user, server: format!("PostgreSQL {version}"), rights })
    };
    read().map_err(|error| postgres_error(&error))
}

fn postgres_error(error: &tokio_postgres::Error) -> String {
    let Some(said) = error.as_db_error() else { return error.to_string() };
    let parts = [Some(said.message()), said.detail(), said.hint()];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

async fn ask_mysql(port: u16, password: Option<&SecretString>) -> Result<Found, String> {
    let options = mysql_async::OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(port)
        .user(Some(ANYONE))
        .pass(password.map(ExposeSecret::expose_secret))
        .prefer_socket(false)
        // Otherwise it asks the server, one round trip more.
        .max_allowed_packet(Some(1 << 20))
        .wait_timeout(Some(60));
    let mut client = mysql_async::Conn::new(options).await.map_err(|error| mysql_error(&error))?;
    let asking = async {
        let (user, version): (String, String) =
            client.query_first("select current_user(), version()").await?.unwrap_or_default();
        let grants: Vec<String> = client.query("show grants").await?;
        let server = if version.contains("MariaDB") { version } else { format!("MySQL {version}") };
        let rights = grants.iter().map(|grant| without_secret(grant)).collect();
        Ok(Found { user, server, rights })
    };
    let found = asking.await.map_err(|error: mysql_async::Error| mysql_error(&error));
    // The server hears of the end; the answer is here.
    let _best_effort = client.disconnect().await;
    found
}

fn mysql_error(error: &mysql_async::Error) -> String {
    match error {
        mysql_async::Error::Server(said) => said.message.clone(),
        other => other.to_string(),
    }
}

/// MariaDB and MySQL 5.6 show the hash of the password in SHOW GRANTS.
fn without_secret(grant: &str) -> String {
    grant.split(" IDENTIFIED ").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_hash_of_a_password_is_not_shown() {
        let grant = "GRANT USAGE ON *.* TO `u`@`%` IDENTIFIED BY PASSWORD '*AB12' REQUIRE SSL";
        assert_eq!(super::without_secret(grant), "GRANT USAGE ON *.* TO `u`@`%`");
    }
}
