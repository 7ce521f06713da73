//! A saved report, shown again by `hull compare --from`; and its page, as a browser shows it.

mod machine;

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use machine::run;
use serde_json::Value;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/compare-v1.json");
/// Debian's package; that of a snap may not see files in /tmp.
const BROWSER: &str = "chromium";
const LIMIT: Duration = Duration::from_secs(120);

/// A page in a folder of its own, for a browser with a new profile.
struct Shown {
    folder: tempfile::TempDir,
    page: PathBuf,
}

impl Shown {
    fn new(html: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let page = folder.path().join("page.html");
        std::fs::write(&page, html).expect("the page is written");
        Self { folder, page }
    }

    /// The output of the browser with `flags` and the file.
    fn browse(&self, file: &Path, flags: &[&str]) -> Vec<u8> {
        let profile = self.folder.path().join("profile");
        let output = assert_cmd::Command::new(BROWSER)
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args(["--disable-sync", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .args(flags)
            .arg(format!("file://{}", file.display()))
            .timeout(LIMIT)
            .output()
            .unwrap_or_else(|error| panic!("{BROWSER}: {error}: make test-deps"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{BROWSER}: {}: {errors}",
            output.status
        );
        output.stdout
    }

    /// The document after loading, as text.
    fn dom(&self) -> String {
        let dom = self.browse(&self.page, &["--dump-dom"]);
        String::from_utf8(dom).expect("UTF-8")
    }

    /// A screenshot, as a PNG. Scheme 0 is dark, 1 is light.
    fn picture(&self, scheme: u8) -> Vec<u8> {
        let file = self.folder.path().join("picture.png");
        let (scheme, screenshot) = (
            format!("--blink-settings=preferredColorScheme={scheme}"),
            format!("--screenshot={}", file.display()),
        );
        self.browse(
            &self.page,
            &[&scheme, &screenshot, "--window-size=1200,900"],
        );
        std::fs::read(&file).expect("a picture")
    }

    /// The width of the document in a frame. The page's policy forbids scripts, so a page around it measures.
    fn width_in(&self, frame: usize) -> usize {
        let outer = self.folder.path().join("outer.html");
        let html = format!(
            "<!DOCTYPE html><title>-</title><iframe src=page.html width={frame} height=700></iframe><script>\
             onload = () => {{ document.title = 'width ' + \
             document.querySelector('iframe').contentDocument.documentElement.scrollWidth }}</script>"
        );
        std::fs::write(&outer, html).expect("written");
        let dom = self.browse(
            &outer,
            &[
                "--allow-file-access-from-files",
                "--hide-scrollbars",
                "--dump-dom",
            ],
        );
        let dom = String::from_utf8(dom).expect("UTF-8");
        let width = between(&dom, "<title>width ", "</title>");
        width
            .unwrap_or_else(|| panic!("{dom}"))
            .parse()
            .expect("a number")
    }
}

fn golden() -> Value {
    let text = std::fs::read(GOLDEN).expect("the golden report");
    serde_json::from_slice(&text).expect("JSON")
}

/// The page that hull renders from a report.
fn rendered(report: &Value) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let [json, html] = ["a.json", "a.html"].map(|name| folder.path().join(name));
    let text = serde_json::to_vec(report).expect("written");
    std::fs::write(&json, text).expect("the report is written");
    let (json, html) = (json.to_str().expect("UTF-8"), html.to_str().expect("UTF-8"));
    let shown = run(&["compare", "--from", json, "--html", html]);
    assert_eq!((shown.status, shown.stderr.as_str()), (Some(0), ""));
    std::fs::read_to_string(html).expect("the page is there")
}

/// Puts `text` before every text of a report that is not a keyword.
fn spoilt(value: &mut Value, text: &str) {
    match value {
        Value::String(one) => one.insert_str(0, text),
        Value::Array(all) => all.iter_mut().for_each(|one| spoilt(one, text)),
        Value::Object(fields) => {
            let kept = ["kind", "unit", "better"];
            let free = fields
                .iter_mut()
                .filter(|(name, _)| !kept.contains(&name.as_str()));
            free.for_each(|(_, one)| spoilt(one, text));
        }
        _ => {}
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

/// Figure, subject and value of each element with this tag that has them, in the document's order.
fn figures(dom: &str, tag: &str) -> Vec<[String; 3]> {
    let open = format!("<{tag} ");
    let tags = dom
        .split(&open)
        .skip(1)
        .filter_map(|rest| rest.split_once('>'));
    let attribute = |tag: &str, name: &str| {
        let value = between(tag, &format!("{name}=\""), "\"")?;
        let plain = value
            .replace("&quot;", "\"")
            .replace("&lt;", "<")
            .replace("&gt;", ">");
        Some(plain.replace("&amp;", "&"))
    };
    let figure = |tag: &str| {
        Some([
            attribute(tag, "data-figure")?,
            attribute(tag, "data-subject")?,
            attribute(tag, "data-value")?,
        ])
    };
    tags.filter_map(|(tag, _)| figure(tag)).collect()
}

/// The same from the JSON; only cells with samples if `numbers`.
fn expected(report: &Value, numbers: bool) -> Vec<[String; 3]> {
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let mut all = Vec::new();
    for row in list(report, "rows") {
        for figure in list(&row, "figures") {
            for cell in list(&figure, "cells") {
                let median = cell["summary"]["median"].as_f64();
                let value = match (cell["passed"].as_bool(), median) {
                    (Some(true), _) => "pass".into(),
                    (Some(false), _) => "fail".into(),
                    (None, Some(median)) => median.to_string(),
                    (None, None) => cell["text"].as_str().unwrap_or_default().to_owned(),
                };
                if median.is_some() || !numbers {
                    all.push([text(&figure["name"]), text(&cell["subject"]), value]);
                }
            }
        }
    }
    all
}

#[test]
fn a_saved_report_is_shown_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let [json, markdown] =
        ["a.json", "a.md"].map(|name| folder.path().join(name).display().to_string());
    let shown = run(&[
        "compare",
        "--from",
        GOLDEN,
        "--json",
        &json,
        "--markdown",
        &markdown,
    ]);
    assert_eq!((shown.status, shown.stderr.as_str()), (Some(0), ""));
    let table = shown.stdout_text();
    assert!(
        table.contains("STARTUP TIME") && table.contains("49.0 ms (24.5x)"),
        "{table}"
    );
    assert!(!table.contains('\x1b'), "no colours for a pipe");
    let saved = |path: &str| std::fs::read_to_string(path).expect("it is there");
    assert!(saved(&json) == saved(GOLDEN), "the same report comes out");
    assert!(
        saved(&markdown).contains("| 20.0 ms (crun) |"),
        "{}",
        saved(&markdown)
    );
}

#[test]
fn a_file_that_is_not_a_report_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("other.json");
    let path = file.to_str().expect("UTF-8");
    let mut newer = golden();
    newer["format"] = 99.into();
    for (text, told) in [
        ("hull".to_owned(), "it is not JSON, or was cut off: "),
        (
            "{\"a\": 1}".to_owned(),
            "it is not a report of `hull compare --json`: ",
        ),
        (newer.to_string(), "its format is 99, and this hull ("),
    ] {
        std::fs::write(&file, text).expect("written");
        let refused = run(&["compare", "--from", path]);
        assert_eq!(
            (refused.status, refused.stdout_text().as_str()),
            (Some(125), "")
        );
        let start = format!("error: --from {path}: {told}");
        assert!(refused.stderr.starts_with(&start), "{}", refused.stderr);
    }
    let missing = run(&["compare", "--from", "/none/a.json"]);
    missing.assert(
        125,
        "",
        "error: --from /none/a.json: No such file or directory (os error 2)\n",
    );
    let file = tempfile::NamedTempFile::new().expect("a file");
    let json = file.path().to_str().expect("UTF-8");
    let golden = golden();
    let name = |list: &str| golden[list][0]["name"].as_str().expect("a name");
    let (row, subject) = (name("rows"), name("subjects"));
    let chosen = ["--rows", row, "--subjects", subject, "--json", json];
    let shown = run(&[&["compare", "--from", GOLDEN][..], &chosen].concat());
    assert_eq!((shown.status, shown.stderr.as_str()), (Some(0), ""));
    let text = std::fs::read(file.path()).expect("a report");
    let part: Value = serde_json::from_slice(&text).expect("JSON");
    for (list, name) in [("rows", row), ("subjects", subject)] {
        assert_eq!(part[list].as_array().map(Vec::len), Some(1), "{list}");
        assert_eq!(part[list][0]["name"], name);
    }
    for flag in ["--rows", "--subjects"] {
        let refused = run(&["compare", "--from", GOLDEN, flag, "nosuch"]);
        let told = format!("error: {flag} nosuch: the report has no such ");
        assert!(refused.stderr.starts_with(&told), "{}", refused.stderr);
    }
    let both = run(&["compare", "--from", GOLDEN, "--runs", "3"]);
    assert_eq!(both.status, Some(125));
    assert!(
        both.stderr.contains("cannot be used with"),
        "{}",
        both.stderr
    );
}

#[test]
fn figures_on_the_page_are_those_of_the_json() {
    let report = golden();
    let dom = Shown::new(&rendered(&report)).dom();
    let cells = expected(&report, false);
    assert!(cells.len() > 100, "{} figures are not all", cells.len());
    assert_eq!(figures(&dom, "td"), cells, "in the tables");
    assert_eq!(
        figures(&dom, "text"),
        expected(&report, true),
        "in the charts"
    );
}

#[test]
fn hostile_texts_run_nothing_and_load_nothing() {
    let (address, connections) = network();
    let hostile = format!(
        "'\"></title></style></svg></td><script>document.title='owned'</script><img src=http://{address}/>"
    );
    // Without any defence it does: the test would notice.
    let dom = Shown::new(&format!(
        "<!DOCTYPE html><title>x</title><p title=\"{hostile}\">"
    ))
    .dom();
    assert!(dom.contains("<title>owned</title>"), "{dom}");
    assert!(
        connections.swap(0, Ordering::SeqCst) > 0,
        "the browser loads pictures"
    );

    let mut report = golden();
    spoilt(&mut report, &hostile);
    let page = rendered(&report);
    let dom = Shown::new(&page).dom();
    assert!(
        !dom.contains("<title>owned</title>") && !dom.contains("<script") && !dom.contains("<img")
    );
    assert_eq!(figures(&dom, "td").len(), expected(&report, false).len());
    assert_eq!(connections.swap(0, Ordering::SeqCst), 0);

    // If one text were not escaped, the policy would still hold.
    let dom = Shown::new(&page.replace("<main>", &format!("<main>{hostile}"))).dom();
    assert!(
        dom.contains("<script") && dom.contains("<img"),
        "they are in the document"
    );
    assert!(!dom.contains("<title>owned</title>"));
    assert_eq!(connections.swap(0, Ordering::SeqCst), 0);
}

/// A listener and its number of connections. It closes them at once: a page waits for its pictures.
fn network() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    (address, connections)
}

#[test]
fn both_colour_schemes_have_a_picture() {
    let shown = Shown::new(&rendered(&golden()));
    let blank = Shown::new("<!DOCTYPE html>").picture(1);
    let [dark, light] = [0, 1].map(|scheme| shown.picture(scheme));
    for (name, picture) in [("dark", &dark), ("light", &light)] {
        let often = picture.len() / blank.len();
        assert!(
            often > 5,
            "{name}: {} bytes, of a blank page {}",
            picture.len(),
            blank.len()
        );
    }
    assert!(
        corner(&light).iter().all(|part| *part > 220),
        "{:?}",
        corner(&light)
    );
    assert!(
        corner(&dark).iter().all(|part| *part < 40),
        "{:?}",
        corner(&dark)
    );
}

/// Red, green and blue of a PNG's first pixel, to which every filter adds 0 (PNG, third edition, 9.2).
fn corner(png: &[u8]) -> [u8; 3] {
    let mut data = Vec::new();
    let mut rest = &png[8..];
    while let Some((head, more)) = rest.split_at_checked(8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if &head[4..] == b"IDAT" {
            data.extend_from_slice(&more[..length]);
        }
        rest = &more[length + 4..];
    }
    let mut pixels = [0; 4];
    let mut inflated = flate2::read::ZlibDecoder::new(data.as_slice());
    inflated.read_exact(&mut pixels).expect("pixels");
    [pixels[1], pixels[2], pixels[3]]
}

#[test]
fn the_page_does_not_scroll_sideways_on_a_phone() {
    let mut report = golden();
    // A word without a place to break.
    spoilt(&mut report, &"0123456789".repeat(12));
    for (name, report) in [("golden", golden()), ("long words", report)] {
        let shown = Shown::new(&rendered(&report));
        for width in [320, 400, 900] {
            let wide = shown.width_in(width);
            assert_eq!(wide, width, "{name}: the document is {wide} wide");
        }
    }
}
