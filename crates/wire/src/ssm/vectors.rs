//! The recorded frames of `testdata/ssm`, for tests.

use bytes::Bytes;
use serde_json::Value;

/// One recorded frame and what an independent decoder read in it.
pub(crate) struct Record {
    pub(crate) frame: Bytes,
    /// Agent → client.
    pub(crate) from_agent: bool,
    pub(crate) message_type: String,
    pub(crate) sequence: i64,
    pub(crate) flags: u64,
    pub(crate) id: String,
    pub(crate) payload_type: u32,
    pub(crate) payload_length: usize,
}

/// Both recordings, in order.
pub(crate) fn all() -> Vec<Record> {
    let mut records = port_session();
    records.extend(read(include_str!("../../../../testdata/ssm/port-session-refused.jsonl")));
    assert_eq!(records.len(), 38);
    records
}

/// The recording of a port session that worked.
pub(crate) fn port_session() -> Vec<Record> {
    read(include_str!("../../../../testdata/ssm/port-session.jsonl"))
}

fn read(lines: &str) -> Vec<Record> {
    lines.lines().map(record).collect()
}

fn record(line: &str) -> Record {
    let value: Value = serde_json::from_str(line).unwrap();
    let text = |key: &str| value[key].as_str().unwrap().to_owned();
    Record {
        frame: unhex(&text("hex")).into(),
        from_agent: text("dir") == "a2c",
        message_type: text("type"),
        sequence: value["seq"].as_i64().unwrap(),
        flags: value["flags"].as_u64().unwrap(),
        id: text("msgid"),
        payload_type: value["ptype"].as_u64().unwrap().try_into().unwrap(),
        payload_length: value["plen"].as_u64().unwrap().try_into().unwrap(),
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
