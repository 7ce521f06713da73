//! A file of `src/` as text: its code without comments, literals and tests, and the paths in it.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of `src/`.
pub struct Source {
    /// Relative to `src/`.
    pub path: String,
    pub text: String,
    /// `text` with comments and literals blanked out.
    pub code: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
            code: blank(text),
        }
    }

    /// Modules from the crate to this file: `["kvm", "vcpu"]` for `kvm/vcpu.rs`.
    pub fn modules(&self) -> Vec<&str> {
        let stem = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        stem.split('/').collect()
    }

    pub fn top(&self) -> &str {
        self.modules()[0]
    }

    pub fn is_test(&self) -> bool {
        let is_test = |module: &&str| matches!(*module, "tests" | "testing" | "fake");
        self.modules().iter().any(is_test)
    }

    /// `code` without what is compiled for tests alone.
    pub fn product(&self) -> String {
        if self.is_test() {
            String::new()
        } else {
            without_tests(&self.code)
        }
    }

    pub fn fault(&self, line: usize, what: impl std::fmt::Display) -> String {
        format!("src/{}:{line}: {what}", self.path)
    }
}

/// `text` with comments, strings and characters replaced by spaces, line by line the same.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::new();
    let mut i = 0;
    while i < chars.len() {
        let end = match (at(i), at(i + 1)) {
            ('/', '/') => (i..chars.len()).find(|&j| at(j) == '\n'),
            ('/', '*') => {
                let mut depth = 0;
                (i + 1..chars.len()).find_map(|j| {
                    match (at(j - 1), at(j)) {
                        ('/', '*') => depth += 1,
                        ('*', '/') => depth -= 1,
                        _ => {}
                    }
                    (depth == 0).then_some(j + 1)
                })
            }
            ('r', '"' | '#') if !out.ends_with(is_word) => {
                let hashes = (i + 1..chars.len()).take_while(|&j| at(j) == '#').count();
                let close = format!("\"{}", "#".repeat(hashes));
                match at(i + 1 + hashes) {
                    '"' => (i + 2 + hashes..chars.len())
                        .find(|&j| close.chars().enumerate().all(|(k, c)| at(j + k) == c))
                        .map(|j| j + close.len()),
                    _ => Some(i),
                }
            }
            ('"', _) => closing(&chars, i, '"'),
            ('\'', '\\') => closing(&chars, i, '\''),
            // A character, not a lifetime.
            ('\'', _) if at(i + 2) == '\'' => Some(i + 3),
            _ => Some(i),
        }
        .unwrap_or(chars.len());
        if end == i {
            out.push(at(i));
            i += 1;
        }
        while i < end {
            out.push(if at(i) == '\n' { '\n' } else { ' ' });
            i += 1;
        }
    }
    out
}

/// The end of the literal that `quote` opens at `start`.
fn closing(chars: &[char], start: usize, quote: char) -> Option<usize> {
    let mut escaped = false;
    (start + 1..chars.len()).find_map(|i| {
        let here = chars[i] == quote && !escaped;
        escaped = chars[i] == '\\' && !escaped;
        here.then_some(i + 1)
    })
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `code` with each item under `#[cfg(test)]` blanked out: up to its block's end or its `;`.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let Some(start) = code.find(MARK) else {
        return code.into();
    };
    let mut depth = 0;
    let item = code[start..].char_indices().find_map(|(i, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        (depth == 0 && matches!(c, '}' | ';')).then_some(start + i + 1)
    });
    let end = item.unwrap_or(code.len());
    let lines = code[start..end].matches('\n').count();
    let rest = without_tests(&code[end..]);
    format!("{}{}{rest}", &code[..start], "\n".repeat(lines))
}

/// Where `word` stands in `code` as a whole word: the line, from 1, and the text after it.
pub fn words<'a>(code: &'a str, word: &str) -> Vec<(usize, &'a str)> {
    let alone = |&(i, _): &(usize, &str)| {
        !code[..i].ends_with(is_word) && !code[i + word.len()..].starts_with(is_word)
    };
    code.match_indices(word)
        .filter(alone)
        .map(|(i, _)| (1 + code[..i].matches('\n').count(), &code[i + word.len()..]))
        .collect()
}

/// The word that `text` begins with, after white space; it may be empty.
pub fn first_word(text: &str) -> &str {
    let text = text.trim_start();
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    &text[..end]
}

/// All paths of two names or more in `code`, with their lines: `a::{b, c::d}` is `a::b` and `a::c::d`.
pub fn paths(code: &str) -> Vec<(usize, Vec<&str>)> {
    let mut found = Vec::new();
    let mut names = Vec::new();
    // How many of `names` stand before each open `{`.
    let mut groups = vec![0];
    let mut joined = false;
    let mut line = 1;
    let mut rest = code;
    loop {
        let text = rest.trim_start();
        line += rest[..rest.len() - text.len()].matches('\n').count();
        let Some(first) = text.chars().next() else {
            return found;
        };
        let word = first_word(text);
        if !joined {
            let before = groups[groups.len() - 1];
            if names.len() > before.max(1) && !text.starts_with("::") {
                found.push((line, names.clone()));
            }
            if !text.starts_with("::") {
                names.truncate(before);
            }
        }
        let mut len = word.len().max(first.len_utf8());
        match first {
            ':' if text.starts_with("::") => len = 2,
            '{' if joined => groups.push(names.len()),
            '}' if groups.len() > 1 => {
                groups.pop();
                names.truncate(groups[groups.len() - 1]);
            }
            _ if !word.is_empty() => names.push(word),
            _ => {}
        }
        joined = len == 2 && first == ':';
        rest = &text[len..];
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

pub fn tree() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&src, &mut files);
    files.retain(|path| path.extension().is_some_and(|ext| ext == "rs"));
    files
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
            Source::new(name, &fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn blanking_leaves_code_and_lines() {
    for (text, code) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ d */ e", "a                   e"),
        ("a(\"b \\\" c\", d)", "a(        , d)"),
        ("a('\"', '\\'', b)", "a(   ,     , b)"),
        ("fn a<'b>(c: &'b str)", "fn a<'b>(c: &'b str)"),
        ("a(r#\"b \" c\"#, d)", "a(          , d)"),
        ("r#type, for\"a\"", "r#type, for   "),
        ("a(b\"c\")", "a(b   )"),
        ("\"a\nb\" c", "  \n   c"),
    ] {
        assert_eq!(blank(text), code);
    }
}

#[test]
fn paths_are_found_in_groups_too() {
    let text = "use a::{\n    b,\n    c::{self, d},\n    *,\n};\nfn f(x: &e :: g) -> h { i::j(k) }";
    let all = paths(text).into_iter();
    let all: Vec<String> = all
        .map(|(line, names)| format!("{line} {}", names.join("::")))
        .collect();
    assert_eq!(
        all,
        ["2 a::b", "3 a::c::self", "3 a::c::d", "6 e::g", "6 i::j"]
    );
}
