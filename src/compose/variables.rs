//! `${NAME}` in the values of a file, and files of variables.

use std::collections::BTreeMap;

/// Most variables that lie in each other's defaults.
const MAX_DEPTH: usize = 8;
/// Most bytes of a value: a default that names variables twice would double at each level.
const MAX_VALUE: usize = 64 << 10;

/// Variables by their names.
pub type Variables = BTreeMap<String, String>;

/// Replace the variables in `text`: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`, `${NAME:?message}`,
/// `${NAME?message}`, `${NAME:+instead}` and `${NAME+instead}`; `$$` is a `$`.
///
/// # Errors
/// A variable has no value, or what follows a `$` is none.
pub fn replace(text: &str, variables: &Variables) -> Result<String, String> {
    replace_in(text, variables, 0)
}

fn replace_in(text: &str, variables: &Variables, depth: usize) -> Result<String, String> {
    if depth > MAX_DEPTH {
        return Err(format!("more than {MAX_DEPTH} variables lie in each other"));
    }
    let (mut replaced, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('$') {
        replaced += before;
        if let Some(after) = after.strip_prefix('$') {
            replaced.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (inner, after) = closed(after)
                .ok_or_else(|| format!("${{{after}: the }} of the variable is missing"))?;
            replaced += &braced(inner, variables, depth)?;
            rest = after;
        } else {
            let len = after.bytes().take_while(|byte| is_name(*byte)).count();
            let (name, after) = after.split_at(len);
            check(name).map_err(|()| "a $ stands alone; write $$ for one".to_string())?;
            replaced += variables.get(name).ok_or_else(|| missing(name))?;
            rest = after;
        }
        if replaced.len() > MAX_VALUE {
            return Err(format!(
                "with its variables it has more than {MAX_VALUE} bytes"
            ));
        }
    }
    Ok(replaced + rest)
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn check(name: &str) -> Result<(), ()> {
    let begins = name.bytes().next().is_some_and(|it| !it.is_ascii_digit());
    (begins && name.bytes().all(is_name))
        .then_some(())
        .ok_or(())
}

fn missing(name: &str) -> String {
    format!("the variable {name} has no value; set it, or write ${{{name}:-}} for an empty one")
}

/// What is before the brace that closes `text`, and what is behind it.
fn closed(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0_usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some((text.get(..at)?, text.get(at + 1..)?)),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// What `${inner}` stands for.
fn braced(inner: &str, variables: &Variables, depth: usize) -> Result<String, String> {
    let len = inner.bytes().take_while(|byte| is_name(*byte)).count();
    let (name, operator) = inner.split_at(len);
    check(name).map_err(|()| format!("${{{inner}}}: no name of a variable"))?;
    let value = variables.get(name);
    // With a colon an empty one counts as none.
    let (value, operator) = match operator.strip_prefix(':') {
        Some(operator) => (value.filter(|value| !value.is_empty()), operator),
        None => (value, operator),
    };
    let other = |text: &str| replace_in(text, variables, depth + 1);
    let (kind, word) = match operator.chars().next() {
        Some(kind) => (kind, operator.get(kind.len_utf8()..).unwrap_or_default()),
        None if inner.len() == name.len() => return value.cloned().ok_or_else(|| missing(name)),
        None => (' ', ""),
    };
    match (kind, value) {
        ('-' | '?', Some(value)) => Ok(value.clone()),
        ('-', None) => other(word),
        ('?', None) => Err(format!("the variable {name} has no value: {word}")),
        ('+', Some(_)) => other(word),
        ('+', None) => Ok(String::new()),
        _ => Err(format!(
            "${{{inner}}}: behind the name of a variable stands :-, -, :?, ?, :+ or +"
        )),
    }
}

/// The variables of a file, `NAME=VALUE` a line, whose value may be in quotes. Lines with `#` and a `NAME` alone are
/// left out.
pub fn of_file(text: &str) -> Variables {
    let variable = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        check(name).ok()?;
        let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
        let value = quoted('"').or_else(|| quoted('\''));
        let plain = || {
            let value = line.split_once('=').map_or("", |(_, value)| value);
            value.split(" #").next().unwrap_or_default().trim()
        };
        let value = value.unwrap_or_else(plain);
        Some((name.to_string(), value.to_string()))
    };
    let lines = text.lines().filter(|line| !line.trim().starts_with('#'));
    lines.filter_map(variable).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables() -> Variables {
        of_file("A=one\nEMPTY=\n# C=1\nexport Q=\"a b\"\nS='$x'\nH=x # y\nD\n")
    }

    #[test]
    fn variables_are_replaced_as_compose_has_it() {
        let variables = variables();
        for (text, result) in [
            ("", ""),
            ("a$A-${A}$$A", "aone-one$A"),
            ("${B:-two}${B-}${A:-two}", "twoone"),
            ("${EMPTY:-x}${EMPTY-x}", "x"),
            ("${A:+set}${EMPTY:+set}${EMPTY+set}${B+set}", "setset"),
            ("${B:-${A}-${C:-{}}}", "one-{}"),
            ("$Q $S $H", "a b $x x"),
        ] {
            assert_eq!(replace(text, &variables).as_deref(), Ok(result), "{text}");
        }
        for (text, part) in [
            ("$B", "the variable B has no value"),
            ("${B}", "the variable B has no value"),
            ("${B:?say it}", "has no value: say it"),
            ("${EMPTY:?}", "has no value"),
            ("${A", "is missing"),
            ("${}", "no name of a variable"),
            ("${A!x}", "behind the name"),
            ("cost: 5$", "write $$"),
            ("$1", "write $$"),
        ] {
            let refused = replace(text, &variables).expect_err(text);
            assert!(refused.contains(part), "{text}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([$A{}:?+-]|é){0,40}") {
            if let Ok(replaced) = replace(&text, &variables()) {
                prop_assert!(replaced.len() <= MAX_VALUE + text.len());
            }
        }
    }
}
