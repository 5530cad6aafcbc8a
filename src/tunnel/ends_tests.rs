//! Every end of a connection, over lanes and without, is told as what it is.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;

use bastion_wire::end::{End, How, Who};
use sha2::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::client::CarryError;
use super::world::{LAST, World, exchange};
use super::*;
use crate::types::Engine;

const ENGINES: [Engine; 3] = [Engine::Postgres, Engine::Mysql, Engine::Tcp];

/// To the end: what came, and whether that was an end or a reset.
async fn rest(client: &mut tokio::net::TcpStream) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut read = Vec::new();
    let ended = client.read_to_end(&mut read).await;
    (read, ended.map(|_| ()).map_err(|error| error.kind()))
}

#[tokio::test]
async fn a_reset_of_the_database_comes_behind_its_last_words_and_has_none_of_ours() {
    for lanes in [0, 1, 4] {
        let world = World::new(lanes).await;
        for engine in ENGINES {
            for _ in 0..5 {
                let (mut client, carried) = world.client_of(engine, "last").await;
                if engine == Engine::Postgres {
                    client.write_all(b"hello").await.unwrap();
                }
                let heard = rest(&mut client).await;
                assert_eq!(heard, (LAST.to_vec(), Err(ErrorKind::ConnectionReset)), "{lanes} lanes, {engine}");
                let error = carried.await.unwrap().unwrap_err();
                assert_eq!(error.end(), End::new(Who::Database, How::Reset), "{error}");
                assert!(!error.end().is_news(true) && !error.end().is_news(false));
            }
        }
        world.end().await;
    }
}

#[tokio::test]
async fn a_reason_of_the_relay_is_for_the_client_where_it_can_be_said_and_for_the_terminal() {
    for lanes in [0, 1, 4] {
        let world = World::new(lanes).await;
        for engine in ENGINES {
            let (mut client, carried) = world.client_of(engine, "unserved").await;
            if engine == Engine::Postgres {
                client.write_all(b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0").await.unwrap();
            }
            // MySQL's client closes when it has read that.
            let mut read = vec![0; 4096];
            let heard = client.read(&mut read).await;
            let said = String::from_utf8_lossy(&read).into_owned();
            match engine {
                Engine::Tcp => assert_eq!(heard.unwrap_err().kind(), ErrorKind::ConnectionReset, "{lanes} lanes"),
                _ => assert!(said.contains("bastion: target unserved: no connection: nothing listens there"), "{said}"),
            }
            drop(client);
            let error = carried.await.unwrap().unwrap_err();
            assert_eq!(error.to_string(), "nothing listens there");
            assert!(matches!(error, CarryError::Refused(_)) && error.end().is_news(engine != Engine::Tcp));
        }
        world.end().await;
    }
}

#[tokio::test]
async fn a_half_close_is_one_and_the_answer_comes_whole() {
    for lanes in [0, 1, 4] {
        let world = World::new(lanes).await;
        for engine in ENGINES {
            let (client, carried) = world.client_of(engine, "hash").await;
            let answer = exchange(client, b"all of it").await;
            assert_eq!(answer, sha2::Sha256::digest(b"all of it").to_vec(), "{lanes} lanes, {engine}");
            carried.await.unwrap().unwrap();
        }
        world.end().await;
    }
}

#[tokio::test]
async fn a_client_that_resets_is_no_end_for_the_target_and_no_news_for_anybody() {
    for lanes in [0, 1, 4] {
        let world = World::new(lanes).await;
        let (mut client, carried) = world.client("echo").await;
        client.write_all(b"hello").await.unwrap();
        client.read_exact(&mut [0; 5]).await.unwrap();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        let error = carried.await.unwrap().unwrap_err();
        assert!(matches!(error, CarryError::Client(_)) && !error.end().is_news(false), "{error}");
        world.end().await;
    }
}

#[tokio::test]
async fn a_relay_that_knows_no_ends_is_served_as_before() {
    let world = World::new(0).await;
    world.relay.old.store(true, Ordering::SeqCst);
    for engine in [Engine::Tcp, Engine::Mysql, Engine::Tcp] {
        // One that tells how long it is: there is no half-close to such a relay.
        let (client, carried) = world.client_of(engine, "turns").await;
        let answer = exchange(client, b"\0\0\0\0\0\0\0\x09all of it").await;
        assert_eq!(answer, [&b"all of it"[..], &sha2::Sha256::digest(b"all of it")].concat());
        carried.await.unwrap().unwrap();
    }
    world.end().await;
}
