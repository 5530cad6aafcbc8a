//! The client's side: the upgrade, OpenDataChannel, and one websocket until it ends.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::FromRequestParts as _;
use axum::extract::Path;
use axum::extract::Request;
use axum::extract::State;
use axum::extract::ws::CloseFrame;
use axum::extract::ws::Message;
use axum::extract::ws::WebSocket;
use axum::extract::ws::WebSocketUpgrade;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::routing::get;
use futures_util::SinkExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::SplitSink;
use futures_util::stream::SplitStream;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::sync::watch;

use super::Inner;
use super::session::Order;
use super::session::Session;

/// From the upgrade to OpenDataChannel.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// From our close frame to the client's.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// The largest frame at all, so that memory is bounded; [`super::Knobs::max_frame`] is the limit under test.
const LARGEST_FRAME: usize = 4 << 20;

/// The first frame of a client, a text frame.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OpenDataChannel {
    message_schema_version: String,
    request_id: String,
    token_value: String,
    client_id: String,
}

pub(super) fn router(inner: Arc<Inner>) -> Router {
    Router::new().route("/v1/data-channel/{id}", get(upgrade)).with_state(inner)
}

async fn upgrade(State(inner): State<Arc<Inner>>, Path(id): Path<String>, request: Request) -> Response {
    let (mut parts, _body) = request.into_parts();
    if let Err(why) = (inner.verify)(&parts) {
        tracing::warn!(session_id = %id, %why, "upgrade refused");
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    let Some(session) = inner.session(&id).filter(|session| !session.over.is_cancelled()) else {
        return (StatusCode::NOT_FOUND, format!("no session {id:?}")).into_response();
    };
    let query = |key: &str| {
        let pairs = parts.uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(name, _)| *name == key).map(|(_, value)| value).next()
    };
    if query("role") != Some("publish_subscribe") {
        return (StatusCode::BAD_REQUEST, "role is not publish_subscribe").into_response();
    }
    let cell = percent_decode_str(query("cell-number").unwrap_or_default()).decode_utf8_lossy().into_owned();
    if !session.is_cell(&cell) {
        return (StatusCode::BAD_REQUEST, "the session is in another cell: resume it").into_response();
    }
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade.max_frame_size(LARGEST_FRAME).max_message_size(LARGEST_FRAME),
        Err(refusal) => return refusal.into_response(),
    };
    lit(&session).await;
    let cancel = inner.cancel.clone();
    let tracker = inner.tracker.token();
    upgrade.on_upgrade(move |socket| async move {
        let _running = tracker;
        tokio::select! {
            () = serve(&session, socket) => {}
            () = cancel.cancelled() => {}
        }
    })
}

/// Waits until no black hole swallows the bytes of this session.
async fn lit(session: &Session) {
    let mut knobs = session.knobs.subscribe();
    // The sender lives in the session, so this cannot fail.
    drop(knobs.wait_for(|knobs| !knobs.black_hole).await);
}

/// Why a connection ended.
#[derive(Debug, Eq, PartialEq)]
enum Ended {
    Bye,
    Cut,
    /// Cut while frozen.
    Frozen,
    Gone,
    Over,
    TooLarge,
}

async fn serve(session: &Session, mut socket: WebSocket) {
    let Ok(opened) = tokio::time::timeout(OPEN_LIMIT, opened(session, &mut socket)).await else { return };
    if !opened {
        tracing::debug!(session_id = %session.spec.session_id, "OpenDataChannel refused");
        return;
    }
    let (orders, mut order) = watch::channel(Order::Run);
    session.client_arrives(orders.clone());
    let turn = session.turn.lock().await;
    session.client_starts();
    let (mut sink, mut stream) = socket.split();
    let ended = relay(session, &mut sink, &mut stream, &mut order).await;
    session.client_leaves(&orders, ended == Ended::Frozen);
    drop(turn);
    tracing::debug!(session_id = %session.spec.session_id, ?ended, "client connection ended");
    let (code, reason) = match ended {
        Ended::Bye => (1000, "Bye"),
        Ended::Over => (1000, ""),
        Ended::TooLarge => (1009, "message too big"),
        Ended::Cut | Ended::Frozen | Ended::Gone => return,
    };
    let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    let goodbye = async {
        if sink.send(close).await.is_ok() {
            while let Some(Ok(_)) = stream.next().await {}
        }
    };
    drop(tokio::time::timeout(CLOSE_LIMIT, goodbye).await);
}

/// Reads OpenDataChannel. There is no positive answer, and a refusal is only a closed socket.
async fn opened(session: &Session, socket: &mut WebSocket) -> bool {
    loop {
        let text = match socket.recv().await {
            Some(Ok(Message::Text(text))) => text,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
            _ => return false,
        };
        return serde_json::from_str::<OpenDataChannel>(&text).is_ok_and(|open| {
            open.message_schema_version == "1.0"
                && open.request_id.len() >= 16
                && !open.client_id.is_empty()
                && session.is_token(&open.token_value)
        });
    }
}

type Sink = SplitSink<WebSocket, Message>;
type Stream = SplitStream<WebSocket>;

/// Moves frames until the connection ends; while it is frozen, nothing is polled, as if no packet came through.
async fn relay(session: &Session, sink: &mut Sink, stream: &mut Stream, order: &mut watch::Receiver<Order>) -> Ended {
    let mut knobs = session.knobs.subscribe();
    let opened_at = tokio::time::Instant::now();
    let io = async {
        tokio::select! {
            ended = read(session, stream) => ended,
            ended = write(session, sink) => ended,
        }
    };
    tokio::pin!(io);
    loop {
        let (black_hole, cut_after, bye_after) = {
            let knobs = knobs.borrow_and_update();
            (knobs.black_hole, knobs.cut_client_every_ms, knobs.bye_after_ms)
        };
        let now = *order.borrow_and_update();
        let frozen = black_hole || now == Order::Freeze;
        match now {
            Order::Bye => return Ended::Bye,
            Order::Cut if frozen => return Ended::Frozen,
            Order::Cut => return Ended::Cut,
            Order::Freeze | Order::Run => {}
        }
        let at = |after: Option<u64>| async move {
            match after {
                Some(after) => tokio::time::sleep_until(opened_at + Duration::from_millis(after)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = &mut io, if !frozen => return ended,
            () = at(cut_after) => {
                session.cuts_client();
                return if frozen { Ended::Frozen } else { Ended::Cut };
            }
            () = at(bye_after), if !frozen => {
                session.cuts_client();
                return Ended::Bye;
            }
            // The senders outlive this connection, so a change is all that can come.
            _ = knobs.changed() => {}
            _ = order.changed() => {}
            () = session.over.cancelled(), if frozen => return Ended::Frozen,
        }
        if frozen && *order.borrow() == Order::Cut {
            return Ended::Frozen;
        }
    }
}

async fn read(session: &Session, stream: &mut Stream) -> Ended {
    while let Some(Ok(message)) = stream.next().await {
        let frame = match message {
            Message::Binary(frame) => frame,
            // Both peers take a text frame like a binary one.
            Message::Text(text) => text.into(),
            Message::Ping(_) | Message::Pong(_) => continue,
            Message::Close(_) => break,
        };
        if session.knobs.borrow().max_frame.is_some_and(|limit| frame.len() > limit) {
            session.cuts_client();
            return Ended::TooLarge;
        }
        session.take_from_client(frame).await;
    }
    Ended::Gone
}

async fn write(session: &Session, sink: &mut Sink) -> Ended {
    while let Some(frame) = session.down.pop().await {
        if sink.feed(Message::Binary(frame)).await.is_err() {
            return Ended::Gone;
        }
        while let Some(frame) = session.down.try_pop() {
            if sink.feed(Message::Binary(frame)).await.is_err() {
                return Ended::Gone;
            }
        }
        if sink.flush().await.is_err() {
            return Ended::Gone;
        }
    }
    Ended::Over
}
