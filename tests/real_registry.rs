//! A registry as people run one, Debian's docker-registry with accounts, to which skopeo has pushed an image of
//! 31 layers (tests/lab/images).

mod machine;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use machine::built;
use serde_json::{Value, json};

const ACCOUNT: &str = "sail:wind";
/// As base64, which configuration files of docker have, and as htpasswd(1) writes it, with bcrypt.
const ENCODED: &str = "c2FpbDp3aW5k";
const HASHED: &str = "sail:$2b$04$abcdefghijklmnopqrstuub/Z8v7fIvpdq0rh4Xmj9V.UfLwY0IlO";

struct Registry {
    program: Child,
    port: u16,
}

impl Registry {
    /// Serves from `folder`, which is empty, to those with an account; with TLS, if it is given the name of a
    /// certificate, `NAME.pem`, and its key, `NAME.key`, to everybody.
    fn start(folder: &Path, certificate: Option<&Path>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let [accounts, files, config] =
            ["accounts", "files", "config.yml"].map(|name| folder.join(name));
        fs::write(&accounts, HASHED).expect("accounts");
        let mut text = json!({
            "version": "0.1",
            "log": { "level": "warn" },
            "storage": { "filesystem": { "rootdirectory": files } },
            "http": { "addr": format!("127.0.0.1:{port}") },
            "auth": { "htpasswd": { "realm": "harbour", "path": accounts } },
        });
        if let Some(name) = certificate {
            let [certificate, key] = ["pem", "key"].map(|end| name.with_extension(end));
            text["http"]["tls"] = json!({ "certificate": certificate, "key": key });
            text["auth"] = json!({});
        }
        // JSON is YAML.
        fs::write(&config, text.to_string()).expect("a configuration");
        let mut program = Command::new("docker-registry");
        program.arg("serve").arg(config);
        program.stdout(Stdio::null()).stderr(Stdio::null());
        let program = program.spawn().expect("docker-registry, by make test-deps");
        let registry = Self { program, port };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            thread::sleep(Duration::from_millis(50));
        }
        registry
    }

    fn name(&self) -> String {
        format!("localhost:{}/fleet/debian:deep", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// hull with a store and a home of its own in `folder`.
fn hull(folder: &Path, arguments: &[&str]) -> Command {
    let mut hull = Command::new(env!("CARGO_BIN_EXE_hull"));
    hull.args(arguments).env("HULL_CACHE", folder);
    hull.env("HOME", folder).env("DOCKER_CONFIG", folder);
    hull.env_remove("REGISTRY_AUTH_FILE")
        .env_remove("XDG_RUNTIME_DIR");
    hull.stdin(Stdio::null());
    hull
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(0), String::new())
    );
    text(&output.stdout)
}

/// The digest of the configuration of `tag` in an OCI layout, which is the image's ID.
fn id(layout: &Path, tag: &str) -> String {
    let document = |path: &Path| -> Value {
        let bytes = fs::read(path).expect("a document");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    let index = document(&layout.join("index.json"));
    let manifests = index["manifests"].as_array().expect("manifests");
    let of_tag =
        |it: &&Value| it["annotations"]["org.opencontainers.image.ref.name"].as_str() == Some(tag);
    let manifest = manifests.iter().find(of_tag).expect("the tag");
    let digest = manifest["digest"].as_str().expect("a digest");
    let manifest = document(&layout.join("blobs").join(digest.replace(':', "/")));
    manifest["config"]["digest"]
        .as_str()
        .expect("a digest")
        .into()
}

#[test]
fn what_skopeo_pushed_to_a_registry_with_accounts_is_pulled() {
    let [served, store] = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let registry = Registry::start(served.path(), None);
    let (name, layout) = (registry.name(), built("images/debian/layout"));
    let mut push = Command::new("skopeo");
    push.args([
        "copy",
        "--quiet",
        "--dest-tls-verify=false",
        "--dest-creds",
        ACCOUNT,
    ]);
    push.args([format!("oci:{layout}:deep"), format!("docker://{name}")]);
    ok(&push.output().expect("skopeo, by make test-deps"));

    let pull = ["pull", "--insecure", &name];
    let refused = hull(store.path(), &pull).output().expect("hull starts");
    let why = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{why}");
    assert!(why.contains("docker login"), "{why}");

    let accounts =
        json!({ "auths": { format!("localhost:{}", registry.port): { "auth": ENCODED } } });
    fs::write(store.path().join("config.json"), accounts.to_string()).expect("an account");
    let start = || {
        let mut hull = hull(store.path(), &pull);
        hull.stdout(Stdio::piped()).stderr(Stdio::piped());
        hull.spawn().expect("hull starts")
    };
    // Two at once do not disturb each other.
    for pulling in [start(), start()] {
        let output = pulling.wait_with_output().expect("it ends");
        assert_eq!(ok(&output), format!("{name}\n"));
    }
    let inspect = ["image", "inspect", &name];
    let about = ok(&hull(store.path(), &inspect).output().expect("hull starts"));
    let about: Value = serde_json::from_str(&about).expect("JSON");
    assert_eq!(about[0]["id"], id(Path::new(&layout), "deep"));
    let layers = about[0]["layers"].as_array().map(Vec::len);
    assert_eq!(layers, Some(31), "{about}");

    // Its layers are those of the layout.
    let local = format!("{layout}:deep");
    ok(&hull(store.path(), &["pull", &local])
        .output()
        .expect("hull starts"));
    let layers = fs::read_dir(store.path().join("images/layers")).expect("layers");
    assert_eq!(layers.count(), 31);
}

/// Make `NAME.pem` and `NAME.key` in `folder`: of an authority, or of a server of this name in the network, by
/// the authority.
fn certify(folder: &Path, name: &str, server: Option<&str>) {
    let mut openssl = Command::new("openssl");
    openssl
        .current_dir(folder)
        .args(["req", "-x509", "-days", "2", "-nodes", "-newkey", "ec"]);
    openssl.args([
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-subj",
        &format!("/CN={name}"),
    ]);
    openssl.args([
        "-out",
        &format!("{name}.pem"),
        "-keyout",
        &format!("{name}.key"),
    ]);
    if let Some(server) = server {
        openssl.args(["-CA", "authority.pem", "-CAkey", "authority.key"]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl.args(["-addext", &format!("subjectAltName=DNS:{server}")]);
    }
    let output = openssl.output().expect("openssl, by make test-deps");
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn certificates_are_those_of_the_system_or_of_a_file() {
    let [right, wrong, store] = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let folder = store.path();
    certify(folder, "authority", None);
    certify(folder, "right", Some("localhost"));
    certify(folder, "wrong", Some("harbour.example"));
    let name = |of: &Registry| format!("localhost:{}/web:1", of.port);
    let right = Registry::start(right.path(), Some(&folder.join("right")));
    let wrong = Registry::start(wrong.path(), Some(&folder.join("wrong")));
    let mut push = Command::new("skopeo");
    push.args(["copy", "--quiet", "--dest-tls-verify=false"]);
    push.arg(format!("oci:{}:nginx", built("images/debian/layout")));
    ok(&push
        .arg(format!("docker://{}", name(&right)))
        .output()
        .expect("skopeo, by make test-deps"));

    let pull = |of: &Registry, file: &str| {
        let mut hull = hull(folder, &["pull", &name(of)]);
        hull.env("SSL_CERT_FILE", folder.join(file))
            .output()
            .expect("hull starts")
    };
    for (registry, file, why) in [
        (&right, "wrong.pem", "UnknownIssuer"),
        (&wrong, "authority.pem", "not valid for name \"localhost\""),
    ] {
        let refused = pull(registry, file);
        assert_eq!(refused.status.code(), Some(125));
        let said = text(&refused.stderr);
        assert!(
            said.contains(why) && said.contains("SSL_CERT_FILE"),
            "{said}"
        );
    }
    assert_eq!(ok(&pull(&right, "authority.pem")), name(&right) + "\n");
}
