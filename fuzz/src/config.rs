//! Configuration files, JSON and TOML.

use arbitrary::Arbitrary;
use hull::config::{Machine, file};

/// Keys of the file, and of tables in it.
const KEYS: &[&str] = &[
    "name",
    "cpus",
    "memory",
    "kernel",
    "initrd",
    "boot",
    "cmdline",
    "console",
    "kernel-log",
    "root-disk",
    "disk",
    "overlay",
    "scratch",
    "net",
    "share",
    "rng",
    "balloon",
    "vsock",
    "break",
    "lockdown",
    "command",
];
const OPTIONS: &[&str] = &[
    "path", "ro", "overlay", "id", "cache", "rate", "format", "backing", "size", "argv", "env",
    "cwd", "user", "tty", "kind", "publish", "mac", "folder", "guest", "mode", "cid", "socket",
    "target", "auto", "subnet", "tag",
];
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
    "d,rate=100iops",
];

/// A file.
#[derive(Arbitrary, Debug)]
pub enum Input {
    Text(String),
    Table(Vec<(u8, Value)>),
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
    fn json(&self) -> serde_json::Value {
        match self {
            Self::Word(word) => pick(WORDS, *word).into(),
            Self::Words(one, two) => [pick(WORDS, *one), pick(WORDS, *two)].join(",").into(),
            Self::Text(text) => text.as_str().into(),
            Self::Number(number) => (*number).into(),
            Self::Float(float) => f64::from(*float).into(),
            Self::Bool(on) => (*on).into(),
            Self::List(list) => list.iter().map(Self::json).collect(),
            Self::Table(table) => map(OPTIONS, table).into(),
        }
    }
}

/// The object with these members.
pub fn map(keys: &[&str], table: &[(u8, Value)]) -> serde_json::Map<String, serde_json::Value> {
    let member = |(key, value): &(u8, Value)| (pick(keys, *key), value.json());
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

/// Read it, print it and read that.
pub fn check(input: &Input) {
    let read = match input {
        Input::Text(text) => machine(text),
        Input::Table(table) => {
            let map = map(KEYS, table);
            let json = serde_json::to_string(&map).unwrap();
            let read = machine(&json);
            let lines = map
                .iter()
                .map(|(key, value)| Some(format!("{key} = {}\n", toml(value)?)));
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
