//! An hour of everyday use, typed in a terminal: what it shows is in tests/golden/session.
//!
//! `TRYCMD=overwrite cargo test --test session` renews that file after an intended change.

mod machine;

use std::fmt::Write;
use std::fs;

use machine::kvm;
use machine::tmux::Window;
use machine::user::User;
use regex::Regex;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/session");

/// What begins a line that is typed: the prompts of the host's shell and of the guest's.
const PROMPTS: [&str; 2] = ["$ ", "/ # "];

#[test]
fn a_session_reads_as_before() {
    if !kvm("session") {
        return;
    }
    let user = User::new();
    let Some(window) = Window::open(&user, "session") else {
        return;
    };
    let golden = fs::read_to_string(GOLDEN).expect("the golden file");
    let steps: Vec<Step> = golden.lines().filter_map(Step::parse).collect();
    let mut session = String::new();
    window.wait_for("prompt", at_prompt);
    for (n, step) in steps.iter().enumerate() {
        let keys_follow = matches!(steps.get(n + 1), Some(Step::Keys(_)));
        session += &step.take(&window, keys_follow);
    }
    let session = masked(&session);
    if std::env::var_os("TRYCMD").is_some_and(|mode| mode == "overwrite") {
        fs::write(GOLDEN, &session).expect("written");
    } else if session != golden {
        let now = user.0.path().join("session");
        fs::write(&now, &session).expect("written");
        let diff = std::process::Command::new("diff")
            .args(["-u", GOLDEN])
            .arg(&now)
            .output();
        let diff = diff.expect("diff starts").stdout;
        panic!("{}", String::from_utf8_lossy(&diff));
    }
}

/// A line of the golden file that is typed.
enum Step<'a> {
    /// A command at a prompt.
    Line(&'a str, &'a str),
    /// `<C-z>`: a key by tmux's name, once the command before has printed a line.
    Keys(&'a str),
}

impl<'a> Step<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if let Some(keys) = line.strip_prefix('<') {
            return Some(Self::Keys(keys.trim_end_matches('>')));
        }
        let prompt = PROMPTS.iter().find(|prompt| line.starts_with(**prompt))?;
        Some(Self::Line(prompt, &line[prompt.len()..]))
    }

    /// Types it, and returns what the window then shows of it.
    #[track_caller]
    fn take(&self, window: &Window, keys_follow: bool) -> String {
        let lines = |text: &str| text.trim_end().lines().count();
        let before = lines(&window.text());
        let (shown, first) = match self {
            Self::Line(prompt, line) => {
                window.enter(line);
                (format!("{prompt}{line}\n"), before)
            }
            Self::Keys(keys) => {
                window.keys(&[keys]);
                (format!("<{keys}>\n"), before)
            }
        };
        window.wait_for(&shown, |text| {
            lines(text) > before && (keys_follow || at_prompt(text))
        });
        let text = window.text();
        let printed = text.trim_end().lines().skip(first);
        printed.fold(shown, |mut shown, line| {
            // What takes a while on a busy host is told.
            let late = line.starts_with("hull: waiting ");
            if !is_prompt(line) && !line.starts_with('^') && !late {
                let _ = writeln!(shown, "{line}");
            }
            shown
        })
    }
}

/// Whether a shell waits for the next line.
fn at_prompt(text: &str) -> bool {
    text.trim_end().lines().last().is_some_and(is_prompt)
}

/// Whether this line is a prompt, perhaps behind the echo of a key.
fn is_prompt(line: &str) -> bool {
    let line = line.trim_start_matches("^C").trim_start_matches("^Z");
    PROMPTS.iter().any(|prompt| prompt.trim_end() == line)
}

/// `session` without what differs from run to run: process ids, times, sizes, versions, and the
/// spaces between columns, which follow them.
fn masked(session: &str) -> String {
    let rules = [
        (r"(?m)^(\[[0-9]\]) [0-9]+$", "$1 PID"),
        (r"process [0-9]+", "process PID"),
        (r"PID +STATE", "PID  STATE"),
        (
            r"(?m)^([a-z]+ +)[0-9]+ +(running|paused|stopped)",
            "${1}PID  $2",
        ),
        (r"(?m)^[0-9a-f]{12} ", "KEY          "),
        (r"[0-9]+ (second|minute|hour)s?", "N seconds"),
        (r"[0-9]+(\.[0-9]+)? (ms|MiB)", "N $2"),
        (r"(N MiB) {2,}", "$1  "),
        (r"(guest kernel: |BusyBox v).*", "${1}VERSION"),
    ];
    let mut text = session.to_string();
    for (pattern, to) in rules {
        let pattern = Regex::new(pattern).expect("a pattern");
        text = pattern.replace_all(&text, to).into_owned();
    }
    text
}
