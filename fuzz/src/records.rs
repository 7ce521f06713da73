//! Small records in JSON: of a machine, of a template, requests to a control socket, keys.

use arbitrary::Arbitrary;
use hull::control::Request;
use hull::fleet::Record;
use hull::templates::{About, Key};
use serde_json::Value;

use crate::config;

const KEYS: &[&str] = &[
    "pid",
    "name",
    "started",
    "cpus",
    "memory_bytes",
    "version",
    "ready_with",
    "kernel",
    "created",
    "request",
    "inspect",
    "topic",
    "vcpu",
    "snapshot",
    "dir",
    "diff",
    "stop",
    "seconds",
    "take",
    "bytes",
];
const WORDS: &[&str] = &[
    "status", "pause", "resume", "kill", "all", "queues", "memory", "cpu", "devices", "x",
];

/// Bytes of a file or of a socket.
#[derive(Arbitrary, Debug)]
pub enum Input {
    Text(String),
    Table(Vec<(u8, config::Value)>),
    Request(u8, Vec<(u8, config::Value)>),
    Word(u8),
}

/// What is read is printed such that it reads the same.
fn both_ways<T>(json: &str)
where
    T: serde::Serialize + serde::de::DeserializeOwned + std::fmt::Debug,
{
    if let Ok(value) = serde_json::from_str::<T>(json) {
        let printed = serde_json::to_string(&value).unwrap();
        let again: T = serde_json::from_str(&printed).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), printed);
        assert_eq!(format!("{again:?}"), format!("{value:?}"));
    }
}

/// Read it as each of them.
pub fn check(input: &Input) {
    let pick = |from: &[&str], index: &u8| from[usize::from(*index) % from.len()].to_string();
    let json = match input {
        Input::Text(text) => text.clone(),
        Input::Table(table) => Value::from(config::map(KEYS, table)).to_string(),
        Input::Request(action, table) => {
            let inside = Value::from(config::map(KEYS, table));
            let action = pick(KEYS, action);
            serde_json::json!({"version": 1, "request": {action: inside}}).to_string()
        }
        Input::Word(word) => {
            serde_json::json!({"version": 1, "request": pick(WORDS, word)}).to_string()
        }
    };
    both_ways::<Record>(&json);
    both_ways::<About>(&json);
    both_ways::<Request>(&json);
    if let Some(key) = Key::parse(&json) {
        assert_eq!(key.to_string(), json);
    }
}
