//! Small records in JSON: of a machine, of a template, requests to a control socket, keys.

use arbitrary::Arbitrary;
use hull::control::{Answer, Request};
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

/// Records as they are, one of each kind.
const WHOLE: &[&str] = &[
    r#"{"pid":1,"name":"a","started":5,"cpus":2,"memory_bytes":4096,"version":"1","ready_with":"k","groups":["/g"]}"#,
    r#"{"kernel":"k","cpus":2,"memory_bytes":4096,"version":"1","created":5}"#,
    r#"{"version":1,"request":{"inspect":{"topic":"all","vcpu":0}}}"#,
    r#"{"version":1,"request":{"snapshot":{"dir":"/d","id":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15],"diff":true,"stop":false}}}"#,
    r#"{"version":1,"request":{"keep":{"id":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]}}}"#,
    r#"{"version":1,"request":{"stop":{"seconds":5}}}"#,
    r#"{"version":1,"request":{"signal":{"number":15}}}"#,
    r#"{"version":1,"request":{"take":{"bytes":9}}}"#,
    r#"{"version":1,"request":"exec"}"#,
    r#"{"status":{"state":"running","resident_bytes":5,"uptime_seconds":6}}"#,
    r#"{"done":{"changed":true}}"#,
    r#"{"saved":{"memory_bytes":5,"stood_still_us":6}}"#,
    r#"{"stopped":{"killed":true}}"#,
    r#"{"admitted":{"env":[[65,61,66]],"cwd":[47],"user":[],"groups":[5],"capabilities":7}}"#,
    r#"{"refused":"no"}"#,
];

/// Bytes of a file or of a socket.
#[derive(Arbitrary, Debug)]
pub enum Input {
    Text(String),
    Table(Vec<(u8, config::Value)>),
    Request(u8, Vec<(u8, config::Value)>),
    Word(u8),
    /// A record that is whole but for these members: replaced by a value, or taken out.
    Whole(u8, Vec<(u8, Option<config::Value>)>),
    /// The parts of two keys.
    Parts(Parts, Parts),
    Key(u8, Vec<u8>),
}

type Parts = Vec<(String, Vec<u8>)>;

/// Change one of the members of `value` and of what is in it.
fn change(value: &mut Value, at: &mut usize, new: &Option<Value>) {
    let Value::Object(map) = value else {
        return;
    };
    let keys: Vec<String> = map.keys().cloned().collect();
    for key in keys {
        if *at == 0 {
            match new {
                Some(new) => map.insert(key, new.clone()),
                None => map.remove(&key),
            };
            *at = usize::MAX;
            return;
        }
        *at -= 1;
        if let Some(inside) = map.get_mut(&key) {
            change(inside, at, new);
        }
        if *at == usize::MAX {
            return;
        }
    }
}

fn key(parts: &Parts) -> Key {
    let mut key = Key::new();
    for (name, bytes) in parts {
        key.add(name, bytes);
    }
    key.finish().expect("no file in it")
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
        Input::Whole(which, changes) => {
            let mut whole: Value = serde_json::from_str(&pick(WHOLE, which)).unwrap();
            for (at, new) in changes {
                let new = new.as_ref().map(|value| value.json(KEYS));
                change(&mut whole, &mut usize::from(at % 12), &new);
            }
            whole.to_string()
        }
        Input::Parts(one, two) => {
            let keys = [one, two].map(key);
            assert_eq!(keys[0] == keys[1], one == two);
            keys[0].to_string()
        }
        Input::Key(cut, bytes) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let mut digits = digits.repeat(16);
            digits.truncate(if *cut < 200 { 32 } else { (*cut).into() });
            assert_eq!(Key::parse(&digits).is_some(), digits.len() == 32);
            digits
        }
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
    both_ways::<Answer>(&json);
    if let Input::Whole(_, changes) = input
        && changes.is_empty()
    {
        let known = serde_json::from_str::<Record>(&json).is_ok()
            || serde_json::from_str::<About>(&json).is_ok()
            || serde_json::from_str::<Request>(&json).is_ok()
            || serde_json::from_str::<Answer>(&json).is_ok();
        assert!(known, "{json}");
    }
    if let Ok(record) = serde_json::from_str::<Record>(&json) {
        record.age();
    }
    if let Some(key) = Key::parse(&json) {
        assert_eq!(key.to_string(), json);
    }
}
