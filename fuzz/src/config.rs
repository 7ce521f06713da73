//! Configuration files, JSON and TOML.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use hull::config::{Machine, file};

/// Keys of the file, and those of a table behind each.
const KEYS: &[(&str, &[&str])] = &[
    ("name", &[]),
    ("cpus", &[]),
    ("memory", &[]),
    ("kernel", &[]),
    ("initrd", &[]),
    ("boot", &[]),
    ("cmdline", &[]),
    ("console", &[]),
    ("kernel-log", &[]),
    ("root-disk", DISK),
    ("disk", DISK),
    ("overlay", DISK),
    ("scratch", &["size"]),
    (
        "net",
        &[
            "user",
            "tap",
            "ip",
            "gw",
            "publish",
            "host-loopback",
            "allow",
            "deny-private",
            "mac",
            "rate",
        ],
    ),
    ("share", &["folder", "path", "ro", "lock", "xattr"]),
    ("rng", &[]),
    ("balloon", &["size", "stats"]),
    ("vsock", &["cid", "socket"]),
    ("break", &[]),
    ("lockdown", &[]),
    ("jail", &["uid", "gid"]),
    ("limit", &["memory", "cpu", "pids", "io"]),
    ("command", &["argv", "env", "cwd", "user", "tty"]),
    ("unknown", &["known"]),
];
const DISK: &[&str] = &[
    "path", "ro", "overlay", "id", "cache", "rate", "format", "backing",
];
/// Keys of a table in a list, and of one that has none.
const OPTIONS: &[&str] = &[
    "path", "ro", "size", "argv", "env", "user", "folder", "cid", "socket",
];
/// Most bytes of a file that are read.
const MAX_BYTES: u64 = 1 << 20;
const WORDS: &[&str] = &[
    "a",
    "1",
    "2",
    "4",
    "128M",
    "1G",
    "/a",
    "/b:/c",
    "/b:/c:ro",
    "user",
    "tap",
    "tap=t0",
    "none",
    "on",
    "off",
    "auto",
    "pvh",
    "guest",
    "serial",
    "virtio",
    "required",
    "best-effort",
    "raw",
    "qcow2",
    "unsafe",
    "writeback",
    "d.img",
    "d.img,ro",
    "d,,e,ro",
    "d,id=x",
    "64M,auto",
    "cid=3,socket=/s",
    "no-irqchip",
    "bad-e820",
    "user,publish=8080:80",
    "2,threads=2",
    "4,cores=2",
    "A=b",
    "root",
    "1:2",
    "d,backing=e",
    "d,rate=10M",
    "d,rate=100ops",
    "t0",
    "10.0.0.2/24",
    "10.0.0.1",
    "8080:80",
    "02:00:00:00:00:01",
    "/srv",
    "host",
    "10M",
    "uid=5",
    "memory=1G,pids=500",
    "1.5",
    "500",
    "5",
    "wrong-cpuid",
    "a\0b",
];

/// A file.
#[derive(Arbitrary, Debug)]
pub enum Input {
    Text(String),
    /// A file, whose text need not be UTF-8, and whether it is too long.
    File(Vec<u8>, bool),
    /// Keys, and spaces before each line.
    Table(Vec<(u8, Value)>, u8),
}

#[derive(Arbitrary, Debug)]
pub enum Value {
    Word(u8),
    Words(u8, u8),
    Text(String),
    Number(i64),
    Float(f32),
    Bool(bool),
    List(Vec<Value>),
    Table(Vec<(u8, Value)>),
}

fn pick(from: &[&str], index: u8) -> String {
    from[usize::from(index) % from.len()].into()
}

impl Value {
    /// As JSON; tables have some of these keys.
    pub fn json(&self, options: &[&str]) -> serde_json::Value {
        match self {
            Self::Word(word) => pick(WORDS, *word).into(),
            Self::Words(one, two) => [pick(WORDS, *one), pick(WORDS, *two)].join(",").into(),
            Self::Text(text) => text.as_str().into(),
            Self::Number(number) => (*number).into(),
            Self::Float(float) => f64::from(*float).into(),
            Self::Bool(on) => (*on).into(),
            Self::List(list) => list.iter().map(|value| value.json(options)).collect(),
            Self::Table(table) => map(options, table).into(),
        }
    }
}

/// The object with these members.
pub fn map(keys: &[&str], table: &[(u8, Value)]) -> serde_json::Map<String, serde_json::Value> {
    let keys = if keys.is_empty() { OPTIONS } else { keys };
    let member = |(key, value): &(u8, Value)| (pick(keys, *key), value.json(keys));
    table.iter().map(member).collect()
}

/// A machine with these keys.
fn file_of(table: &[(u8, Value)]) -> serde_json::Map<String, serde_json::Value> {
    let member = |(key, value): &(u8, Value)| {
        let (key, options) = KEYS[usize::from(*key) % KEYS.len()];
        (key.to_string(), value.json(options))
    };
    table.iter().map(member).collect()
}

/// The value as TOML (toml.io, 1.0.0); `None` for a null, which TOML lacks.
fn toml(value: &serde_json::Value) -> Option<String> {
    use serde_json::Value::{Array, Bool, Null, Number, Object, String};
    Some(match value {
        Null => return None,
        Bool(on) => on.to_string(),
        // A JSON string is a TOML string but for DEL, which has to be escaped.
        String(text) => serde_json::to_string(text)
            .ok()?
            .replace('\u{7f}', "\\u007f"),
        Number(number) => number.to_string(),
        Array(list) => {
            let list: Vec<_> = list.iter().map(toml).collect::<Option<_>>()?;
            format!("[{}]", list.join(","))
        }
        Object(table) => {
            let member = |(key, value)| Some(format!("{key}={}", toml(value)?));
            let list: Vec<_> = table.iter().map(member).collect::<Option<_>>()?;
            format!("{{{}}}", list.join(","))
        }
    })
}

fn machine(text: &str) -> Result<Machine, String> {
    let draft = file::parse(text).map_err(|error| error.to_string())?;
    draft.machine().map_err(|error| error.to_string())
}

/// The same machine as from the text, unless the file is too long.
fn from_file(bytes: &[u8], long: bool) -> Result<Machine, String> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(|| crate::folder("config")).join("file");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(bytes).unwrap();
    if long {
        // A hole is quick to write, and no text.
        file.set_len(MAX_BYTES + 1).unwrap();
    }
    let read = file::read(&path).map_err(|error| error.to_string());
    let read = read.and_then(|draft| draft.machine().map_err(|error| error.to_string()));
    match std::str::from_utf8(bytes) {
        Ok(text) if !long => assert_eq!(read.as_ref().ok(), machine(text).as_ref().ok()),
        _ => assert!(read.is_err()),
    }
    read
}

/// Read it, print it and read that.
pub fn check(input: &Input) {
    let read = match input {
        Input::Text(text) => machine(text),
        Input::File(bytes, long) => from_file(bytes, *long),
        Input::Table(table, spaces) => {
            let map = file_of(table);
            let json = if spaces % 2 == 0 {
                serde_json::to_string(&map).unwrap()
            } else {
                serde_json::to_string_pretty(&map).unwrap()
            };
            let read = machine(&json);
            let lines = map.iter().map(|(key, value)| {
                let before = " ".repeat(usize::from(spaces % 8));
                Some(format!("{before}{key} = {}\n", toml(value)?))
            });
            if let Some(lines) = lines.collect::<Option<Vec<_>>>() {
                let lines = lines.concat();
                match (&read, machine(&lines)) {
                    (Ok(json), Ok(toml)) => assert_eq!(*json, toml, "{lines}"),
                    (Err(_), Err(_)) => {}
                    (json, toml) => panic!("{json:?}\n{toml:?}\n{lines}"),
                }
            }
            read
        }
    };
    match read {
        Err(error) => assert!(!error.is_empty()),
        Ok(machine) => {
            let text = file::write(&machine).unwrap().text();
            let again = self::machine(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!(again, machine, "{text}");
            // Where it ends a text for the guest's kernel or a path.
            assert!(!text.contains("\\u0000"), "{text}");
        }
    }
}
