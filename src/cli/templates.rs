//! `hull templates`: lists and removes templates.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;
use serde::Serialize;

use super::output::{print, print_json, say};
use super::table::{Table, ago};
use crate::config::size;
use crate::templates::{Cache, Key, Listed};

/// Digits of a key in the table.
const SHOWN: usize = 12;
const ALL: &str = "all";

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  hull templates                             what there is, last used first
  hull templates --rm 1f0c                   the one whose key begins so
  hull templates --rm all                    all of them

They lie in $XDG_CACHE_HOME/hull/templates, or ~/.cache/hull/templates.
HULL_CACHE names another folder, or is off for none. HULL_CACHE_SIZE is how
much of the disk they may take, 4G when it is not set: those that were not used
for longest go first. 0 is for none.")]
pub struct Templates {
    /// Remove those whose keys begin so, or all.
    #[arg(long, value_name = "KEY|all", num_args = 1..)]
    rm: Vec<String>,
    /// Print the list as JSON.
    #[arg(long, conflicts_with = "rm")]
    json: bool,
}

/// A template as JSON; what is not known is null.
#[derive(Serialize)]
struct Line {
    key: String,
    kernel: Option<String>,
    cpus: Option<u8>,
    memory_bytes: Option<u64>,
    version: Option<String>,
    created: Option<u64>,
    disk_bytes: u64,
    /// Seconds of Unix time, as `created` is.
    last_used: u64,
}

impl Templates {
    pub fn execute(self) -> anyhow::Result<()> {
        let cache = Cache::there()?;
        if !self.rm.is_empty() {
            return remove(cache.as_ref(), &self.rm);
        }
        let listed = cache.map(|cache| cache.list()).unwrap_or_default();
        if self.json {
            let lines: Vec<Line> = listed.into_iter().map(line).collect();
            return print_json(&lines);
        }
        if listed.is_empty() {
            say("no templates yet");
            return Ok(());
        }
        print(draw(&listed, SystemTime::now()).as_bytes())
    }
}

/// Remove the named templates, or none if one of the names is unclear.
fn remove(cache: Option<&Cache>, wanted: &[String]) -> anyhow::Result<()> {
    let listed = cache.map(Cache::list).unwrap_or_default();
    let keys: Vec<Key> = listed.iter().map(|listed| listed.key).collect();
    let mut chosen = BTreeSet::new();
    for text in wanted.iter().filter(|text| *text != ALL) {
        chosen.insert(choose(&keys, text)?);
    }
    let Some(cache) = cache else {
        return Ok(());
    };
    if wanted.iter().any(|text| text == ALL) {
        return Ok(cache.remove_all()?);
    }
    for key in chosen {
        cache.remove(&key)?;
    }
    Ok(())
}

/// The one key that begins with `text`.
fn choose(keys: &[Key], text: &str) -> anyhow::Result<Key> {
    let begins = |key: &&Key| !text.is_empty() && key.to_string().starts_with(text);
    let fits: Vec<Key> = keys.iter().filter(begins).copied().collect();
    match fits[..] {
        [key] => Ok(key),
        [] => bail!("--rm {text}: no template's key begins so; hull templates lists them"),
        _ => bail!(
            "--rm {text}: {} templates' keys begin so; write more of the key's digits",
            fits.len()
        ),
    }
}

fn line(listed: Listed) -> Line {
    let (about, at) = (listed.about.as_ref(), listed.last_used);
    Line {
        key: listed.key.to_string(),
        kernel: about.map(|about| about.kernel.clone()),
        cpus: about.map(|about| about.cpus),
        memory_bytes: about.map(|about| about.memory_bytes),
        version: about.map(|about| about.version.clone()),
        created: about.map(|about| about.created),
        disk_bytes: listed.bytes,
        last_used: at.duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs()),
    }
}

fn draw(listed: &[Listed], now: SystemTime) -> String {
    let mut table = Table::default();
    table.row(["KEY", "KERNEL", "CPUS", "MEMORY", "DISK", "LAST USED"]);
    for template in listed {
        let about = template.about.as_ref();
        let known = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        table.row([
            template.key.to_string()[..SHOWN].into(),
            known(about.map(|about| printable(&about.kernel))),
            known(about.map(|about| about.cpus.to_string())),
            known(about.map(|about| size::show(about.memory_bytes))),
            size::show(template.bytes),
            ago(now.duration_since(template.last_used).unwrap_or_default()),
        ]);
    }
    table.draw()
}

/// `text` without control characters, which could move a terminal's cursor.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::templates::About;

    fn key(digits: &str) -> Key {
        Key::parse(&format!("{digits:0<32}")).expect("a key")
    }

    #[test]
    fn the_table_has_what_is_known() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let about = About {
            kernel: "/boot/\x1b[2Jvmlinux\n".into(),
            cpus: 2,
            memory_bytes: 128 << 20,
            version: "1".into(),
            created: 5,
        };
        let listed = [
            Listed {
                key: key("0123456789abcdef"),
                about: Some(about),
                bytes: 43 << 20,
                last_used: at(1_000),
            },
            Listed {
                key: key("f"),
                about: None,
                bytes: 4096,
                last_used: at(9_000),
            },
        ];
        assert_eq!(
            draw(&listed, at(1_125)),
            "KEY           KERNEL              CPUS  MEMORY   DISK    LAST USED\n\
             0123456789ab  /boot/?[2Jvmlinux?  2     128 MiB  43 MiB  2 minutes ago\n\
             f00000000000  -                   -     -        4 KiB   just now\n"
        );
    }

    #[test]
    fn ages_are_told_in_their_largest_unit() {
        for (seconds, text) in [
            (0, "just now"),
            (1, "1 second ago"),
            (119, "1 minute ago"),
            (7_200, "2 hours ago"),
            (200_000, "2 days ago"),
        ] {
            assert_eq!(ago(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_key_is_chosen_by_digits_that_only_it_begins_with() {
        let keys = [key("ab1"), key("ab2"), key("c")];
        assert_eq!(choose(&keys, "ab2").expect("one"), keys[1]);
        assert_eq!(choose(&keys, &keys[0].to_string()).expect("one"), keys[0]);
        for (text, why) in [
            ("ab", "2 templates"),
            ("d", "no template"),
            ("", "no template"),
            ("AB1", "no template"),
        ] {
            let error = choose(&keys, text).expect_err("not one").to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
